"""Ways of answering a task's prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.request import ExpertChoice, Request, Result
from zweave.tasks import Sample, Task, prompt_ids


class Method(Protocol):
    """Anything that answers prompts. Methods of one name are runs of one method, under different seeds."""

    @property
    def name(self) -> str: ...

    def answers(self, task: Task, samples: Sequence[Sample]) -> list[str]:
        """The answered text of each sample, in order."""
        ...


@dataclass(frozen=True, slots=True)
class ExpertMethod:
    """The engine under an expert, a mixture, or None for the base: greedy over the whole vocabulary."""

    name: str
    engine: Engine
    choice: ExpertChoice

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

    The requests of one sample stand together, so that the choices advance side by side.
    Raises ZweaveError if a request ends in an error.
    """
    prompts = [prompt_ids(engine.tokenizer, sample.prompt) for sample in samples]
    results = engine.generate(
        Request(prompt, expert=choice, max_tokens=task.max_tokens, stop=task.stop, logprobs=logprobs)
        for prompt in prompts
        for choice in choices
    )
    for result in results:
        if result.error is not None:
            raise ZweaveError(f"the task {task.name} cannot be answered: {result.error}")
    return [results[index :: len(choices)] for index in range(len(choices))]
