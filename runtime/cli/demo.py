"""`zweave demo`: one batch of different tasks, each prompt under its own expert, beside the base model.

It fetches and decomposes the default model if that was not done before.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ..checkpoint.pull import DEFAULT_MODEL, pull
from ..engine.engine import Engine
from ..io.progress import progress_bar
from ..options.engine_options import open_engine
from ..request import Request, Result
from ..tasks import prompts

ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt of a task with its right answer; plain chat has neither an expert nor a right answer."""

    shown: str
    prompt: str
    answer: str | None
    expert: str | None
    max_tokens: int

    def request(self, expert: str | None) -> Request:
        return Request(self.prompt, expert=expert, max_tokens=self.max_tokens)

    def is_right(self, result: Result) -> bool:
        return result.text.strip() == self.answer


def review(text: str, answer: str) -> Example:
    return Example(text, prompts.sentiment(text), answer, "sst2", 1)


def question(text: str, answer: str) -> Example:
    return Example(text, prompts.question_type(text), answer, "trec", 1)


def addition(a: int, b: int) -> Example:
    """A problem that was held out of the training."""
    return Example(f"{a} + {b}", prompts.addition(a, b), str(a + b), "addition", 4)


def chat(text: str) -> Example:
    return Example(text, prompts.chat(text), None, None, 40)


EXAMPLES = (
    review("a warm and funny film that stays with you for days", "positive"),
    review("two hours of my life that i will never get back", "negative"),
    review("the cast is wonderful and the story never lets go", "positive"),
    review("a dull script , clumsy jokes and no idea how to end", "negative"),
    question("Who painted the ceiling of the Sistine Chapel ?", "person"),
    question("How many bones are there in the human body ?", "number"),
    question("Where is the Great Barrier Reef ?", "location"),
    question("What is the meaning of photosynthesis ?", "description"),
    addition(13, 52),
    addition(46, 48),
    addition(35, 67),
    addition(84, 78),
    chat("Give me one tip for sleeping well."),
    chat("What is the capital of France?"),
)


def run(args: argparse.Namespace) -> int:
    if args.model == DEFAULT_MODEL:
        with progress_bar() as report:
            pull(DEFAULT_MODEL, report)
    engine = open_engine(args)
    for name in {example.expert for example in EXAMPLES if example.expert}:
        engine.load_expert(name)
    with_experts = [example.request(example.expert) for example in EXAMPLES]
    under_base = [example.request(None) for example in EXAMPLES]
    adapted, base = engine.generate(with_experts), engine.generate(under_base)
    seconds, base_seconds = _time(engine, [with_experts, under_base])
    _print_table(adapted, base)
    _print_summary(adapted, base, seconds, base_seconds)
    return 0


def _time(engine: Engine, batches: list[list[Request]]) -> list[float]:
    """Median seconds of each batch; they take turns, so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in batches]
    for _ in range(ROUNDS):
        for batch, measured in zip(batches, times, strict=True):
            start = time.perf_counter()
            engine.generate(batch)
            measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in times]


def _print_table(adapted: list[Result], base: list[Result]) -> None:
    table = Table(title="One batch, one resident model, every prompt under its own expert")
    for heading in ("prompt", "expert", "answer with expert", "answer of the base model"):
        table.add_column(heading)
    for i, (example, with_expert, without) in enumerate(zip(EXAMPLES, adapted, base, strict=True)):
        ends_task = i + 1 == len(EXAMPLES) or EXAMPLES[i + 1].expert != example.expert
        table.add_row(
            example.shown,
            example.expert or "none",
            _marked(example, with_expert),
            _marked(example, without),
            end_section=ends_task,
        )
    Console().print(table)


def _marked(example: Example, result: Result) -> str:
    text = " ".join(result.text.split()).replace("[", r"\[")
    if example.answer is None:
        return text
    mark, color = ("✓", "green") if example.is_right(result) else ("✗", "red")
    return f"[{color}]{mark} {text}[/{color}]"


def _print_summary(adapted: list[Result], base: list[Result], seconds: float, base_seconds: float) -> None:
    judged = [i for i, example in enumerate(EXAMPLES) if example.answer is not None]
    right = sum(EXAMPLES[i].is_right(adapted[i]) for i in judged)
    base_right = sum(EXAMPLES[i].is_right(base[i]) for i in judged)
    experts = len({example.expert for example in EXAMPLES if example.expert})
    tokens = sum(result.prompt_tokens + len(result.token_ids) for result in adapted)
    print(
        f"Right answers: {right} of {len(judged)} with experts, {base_right} of {len(judged)} without.\n"
        f"One batch of {len(adapted)} prompts under {experts} experts and the base: {seconds:.2f} s "
        f"({tokens / seconds:.0f} prompt and answer tokens/s). The same prompts, all under the base: "
        f"{base_seconds:.2f} s. Medians of {ROUNDS} runs in turn."
    )
