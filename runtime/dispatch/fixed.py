"""Dispatchers that look at nothing: one choice for all prompts, given or found once for a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..dispatcher import Dispatch, Prompt
from ..errors import ZweaveError
from ..experts.expert import Expert
from ..experts.mixture import ExpertChoice

if TYPE_CHECKING:
    from ..engine.engine import Engine


class FixedDispatcher:
    """expert: what answers every prompt. label, confidence: what is told with it."""

    blocking = False

    def __init__(self, expert: ExpertChoice, label: str | None = None, confidence: float = 1.0) -> None:
        self._dispatch = Dispatch(label, {}, expert, confidence)

    def look(self, prompt: Prompt) -> None:
        return None

    def choose(self, prompt: Prompt, seen: Sequence[float] | Tensor | None) -> Dispatch:
        return self._dispatch


def few_shot(engine: "Engine", path: Path) -> FixedDispatcher:
    """A mixture that `zweave expert search` found for a task's few samples, loaded as an expert of the file's name.

    The label is the task, the confidence the share of its samples that the mixture answers rightly.
    Raises ZweaveError for a file that is none of a search's.
    """
    record: Any = Expert.load(path).training.get("search")
    try:
        task, share = str(record["task"]), float(record["share"])
    except (TypeError, KeyError, ValueError):
        raise ZweaveError(f"{path} is not a mixture of `zweave expert search`") from None
    engine.load_expert(path.stem, path)
    return FixedDispatcher(path.stem, task, share)
