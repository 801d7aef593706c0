"""Our engine on the bench's workload."""

from collections.abc import Sequence
from dataclasses import dataclass

from zweave.engine import Engine
from zweave.request import Request

from .workload import Workload


@dataclass(frozen=True, slots=True)
class EngineServer:
    """Answers a workload's prompts; prompt i is under expert i mod E, without experts under the base model."""

    engine: Engine
    workload: Workload
    experts: Sequence[str] = ()

    def expert(self, index: int) -> str | None:
        return self.experts[index % len(self.experts)] if self.experts else None

    def requests(self, new: int) -> list[Request]:
        return [
            Request(prompt, expert=self.expert(index), max_tokens=new, ignore_eos=True)
            for index, prompt in enumerate(self.workload.prompts(self.engine.model.config))
        ]

    def __call__(self) -> list[list[int]]:
        """The answers' token ids."""
        results = self.engine.generate(self.requests(self.workload.new))
        return [result.token_ids for result in results]


class EngineSteps:
    """A batch after prefill, decoded step by step."""

    def __init__(self, server: EngineServer) -> None:
        self._engine = server.engine
        ids = [self._engine.add(request) for request in server.requests(new=self._engine.max_length)]
        self._answers: dict[int, list[int]] = {request_id: [] for request_id in ids}
        while not all(self._answers.values()):
            self.step()

    def step(self) -> None:
        for delta in self._engine.step():
            if delta.result is not None:
                raise RuntimeError(f"a request ended before its time: {delta.result.finish_reason}")
            self._answers[delta.request_id] += delta.token_ids

    def answers(self) -> list[list[int]]:
        """Token ids so far, cut to the length of the shortest answer."""
        answers = list(self._answers.values())
        return [answer[: min(map(len, answers))] for answer in answers]
