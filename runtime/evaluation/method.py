"""Methods of answering a task's prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..experts.lora_entry import LoraEntry
from ..experts.mixture import ExpertChoice
from ..experts.support import Support
from ..request import Request, Result
from ..tasks import Sample, Task, answer_limit, prompt_ids


class Method(Protocol):
    """Anything that answers prompts. Methods of one name are runs of one method, under different seeds.

    parameters: how many numbers were trained for it; None where that has no meaning.
    """

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> int | None: ...

    def answers(self, task: Task, samples: Sequence[Sample]) -> list[str]:
        """The answered text of each sample, in order."""
        ...


@dataclass(frozen=True, slots=True)
class ExpertMethod:
    """The engine under an expert or a mixture, None for the base model; greedy over the whole vocabulary."""

    name: str
    engine: Engine
    choice: ExpertChoice

    @property
    def parameters(self) -> int | None:
        """Components that the expert may change, 0 for the base model; a mixture has no count."""
        if self.choice is None:
            return 0
        if not isinstance(self.choice, str):
            return None
        entry = self.engine.bank.registered(self.choice)
        if isinstance(entry, LoraEntry):
            return sum(pair.a.numel() + pair.b.numel() for pair in entry.read().pairs.values())
        expert = entry.read()
        support = Support.parse(expert.support)
        return sum(support.components(len(z)) for z in expert.z.values())

    def answers(self, task: Task, samples: Sequence[Sample]) -> list[str]:
        (results,) = answer_together(self.engine, task, samples, [self.choice])
        return [result.text for result in results]


def answer_together(
    engine: Engine,
    task: Task,
    samples: Sequence[Sample],
    choices: Sequence[ExpertChoice],
    logprobs: int | None = None,
) -> list[list[Result]]:
    """Answers all samples under all choices as one mixed batch; results [choices][samples].

    The requests of a sample are neighbours, so that the choices advance side by side.
    Raises ZweaveError if a request ends in an error.
    """
    prompts = [prompt_ids(engine.tokenizer, sample.prompt) for sample in samples]
    limit = answer_limit(engine.tokenizer, task)
    results = answered(
        engine,
        task,
        [
            Request(prompt, expert=choice, max_tokens=limit, stop=task.stop, logprobs=logprobs)
            for prompt in prompts
            for choice in choices
        ],
    )
    return [results[index :: len(choices)] for index in range(len(choices))]


def answered(engine: Engine, task: Task, requests: Sequence[Request]) -> list[Result]:
    """A task's requests as one batch; ZweaveError if one ends in an error."""
    results = engine.generate(requests)
    for result in results:
        if result.error is not None:
            raise ZweaveError(f"the task {task.name} cannot be answered: {result.error}")
    return results
