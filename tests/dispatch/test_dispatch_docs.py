"""docs/dispatch.md: its files load, its dispatcher does what is said, and a conversation keeps its rules."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zweave import Engine, Request, Result
from zweave.dispatch import (
    EarlyClassifier,
    FixedDispatcher,
    HiddenDispatcher,
    PromptDispatcher,
    load_dispatcher,
)
from zweave.experts.mixture import ExpertChoice

TinyEngine = Callable[..., Engine]
TEXT = (Path(__file__).parents[2] / "docs/dispatch.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
TASKS = ("sst2", "trec", "addition")


@pytest.fixture
def make_engine(tiny_engine: TinyEngine) -> Iterator[TinyEngine]:
    """With the experts that the page names; every block and slot must come back."""
    made: list[Engine] = []

    def make(**options: object) -> Engine:
        engine = tiny_engine("float32", **{"kv_tokens": 4096, **options})
        for name, like in zip(TASKS, ("a", "b", "late"), strict=True):
            expert = engine.bank.registered(like).read()
            engine.load_expert(name, expert)
            engine.load_expert(f"{name}-after-prompt", replace(expert, scope="after_prompt"))
        made.append(engine)
        return engine

    yield make
    for engine in made:
        assert not engine.has_work
        assert engine.stats().blocks_in_use == 0


def test_the_files_load(make_engine: TinyEngine, tmp_path: Path) -> None:
    engine = make_engine()
    EarlyClassifier(TASKS, 1, torch.zeros(3, 32), torch.zeros(3)).save(tmp_path / "tasks.safetensors")
    found = engine.bank.registered("a").read()
    record = {"search": {"task": "mine", "share": 0.75}}
    replace(found, training=record).save(tmp_path / "found.safetensors")
    kinds = []
    for kind, block in BLOCKS:
        if kind == "json":
            # The random model's tokens are bytes.
            for word in ("review", "question", "sum"):
                block = block.replace(f'" {word}"', f'"{word[0]}"')
            (tmp_path / "d.json").write_text(block)
            kinds.append((json.loads(block)["strategy"], type(load_dispatcher(engine, tmp_path / "d.json"))))
    assert kinds == [
        ("hidden", HiddenDispatcher),
        ("prompt", PromptDispatcher),
        ("few-shot", FixedDispatcher),
        ("fixed", FixedDispatcher),
    ]


def test_the_dispatcher_of_your_own(make_engine: TinyEngine, tmp_path: Path) -> None:
    engine = make_engine()
    (source,) = (block for kind, block in BLOCKS if kind == "python" and "class ByForm" in block)
    (tmp_path / "mine.py").write_text(source)
    engine.dispatcher = load_dispatcher(engine, tmp_path / "mine.py")
    texts = ["What is 12 + 30?", *(f"is it {i} ?" for i in range(12))]
    requests = [
        Request(messages=[{"role": "user", "content": text}], expert="auto", max_tokens=2) for text in texts
    ]
    results = engine.generate(requests)
    assert not any(result.error for result in results)
    assert (results[0].expert, results[0].dispatch.label, results[0].dispatch.tokens) == (
        "addition",
        "sum",
        0,
    )
    scores = [ord(letter) for letter in "yn"]
    assert {(r.expert, r.dispatch.label) for r in results[1:]} <= {("trec", "question"), (None, "other")}
    for text, result in zip(texts[1:], results[1:], strict=True):
        asked = [{"role": "user", "content": f"{text}\nIs this a question? Answer yes or no."}]
        ids = [engine.tokenizer.encode(chr(letter))[0] for letter in scores]
        (again,) = engine.generate(Request(messages=asked, score=ids, max_tokens=1))
        assert (result.expert == "trec") == (again.scores[0] > again.scores[1])


def talk(engine: Engine, experts: Sequence[ExpertChoice]) -> Iterator[tuple[list[int], Result]]:
    """Each turn's prompt and result, the turns dispatched to these experts."""
    messages: list[dict[str, str]] = []
    for turn, expert in enumerate(experts):
        messages.append({"role": "user", "content": f"turn {turn} of a long talk about nothing"})
        request = Request(
            messages=tuple(messages),
            expert="auto",
            dispatcher=FixedDispatcher(expert),
            max_tokens=6,
            ignore_eos=True,
        )
        (result,) = engine.generate(request)
        yield engine.tokenizer.chat(request.messages), result
        messages.append({"role": "assistant", "content": f"answer {turn}"})


def test_turns_under_always(make_engine: TinyEngine) -> None:
    experts = ["sst2", "trec", "sst2", "trec", "trec", "sst2"]
    engine = make_engine(block_size=1)
    turns = list(talk(engine, experts))
    assert turns == list(talk(make_engine(prefix_cache=False), experts))
    found = [result.reused_tokens for _, result in turns]
    prompts = [prompt for prompt, _ in turns]

    def common(one: int, other: int) -> int:
        """Of a turn's prompt, what an earlier one begins with too, but for the last token."""
        pairs = zip(prompts[one], prompts[other], strict=False)
        return min(
            next((i for i, (a, b) in enumerate(pairs) if a != b), len(prompts[other])), len(prompts[one]) - 1
        )

    # Nothing of another's: the first turn of each begins anew. Then as far as the same expert has read.
    assert found[:2] == [0, 0]
    assert found[2:] == [common(2, 0), common(3, 1), common(4, 3), common(5, 2)]


def test_turns_after_the_prompt(make_engine: TinyEngine) -> None:
    experts = ["sst2-after-prompt", "trec-after-prompt", None, "sst2-after-prompt", "sst2-after-prompt"]
    engine = make_engine(block_size=1)
    turns = list(talk(engine, experts))
    assert turns == list(talk(make_engine(prefix_cache=False), experts))
    starts = [engine.tokenizer.after_prompt_start(prompt) for prompt, _ in turns]
    for turn in range(1, len(turns)):
        reused = turns[turn][1].reused_tokens
        # Whoever answered: all up to the last turn's header is the base's, and known. The answer to it is computed
        # once more, unless the base had given it.
        if experts[turn - 1] is not None:
            assert reused == starts[turn - 1]
        else:
            assert reused >= starts[turn - 1]
