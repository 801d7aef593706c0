"""The strategies `fixed` and `few-shot`: one choice for all prompts, given or found once for a task; no probe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..dispatcher import Dispatch, Prompt, RenamedLook
from ..engine.engine import Engine
from ..errors import ZweaveError
from ..experts.expert import Expert
from ..experts.mixture import ExpertChoice, check_name


class FixedDispatcher(RenamedLook):
    """Chooses the same expert for every prompt.

    label, confidence: what its `Dispatch` says beside the expert.
    """

    blocking = False

    def __init__(self, expert: ExpertChoice, label: str | None = None, confidence: float = 1.0) -> None:
        self._dispatch = Dispatch(label, {}, expert, confidence)

    def probe(self, prompt: Prompt) -> None:
        return None

    def choose(self, prompt: Prompt, evidence: Sequence[float] | Tensor | None) -> Dispatch:
        return self._dispatch


def few_shot(engine: Engine, path: Path) -> FixedDispatcher:
    """The mixture that `zweave expert search` found for a task, loaded as an expert of the file's name.

    The label is the task, the confidence the share of its samples that the mixture answers rightly.
    Raises ZweaveError for a file that no search wrote.
    """
    found = search_result(path)
    engine.load_expert(path.stem, path)
    return found


def search_result(path: Path) -> FixedDispatcher:
    """The dispatcher of `few_shot`, whose expert is not loaded yet; ZweaveError for a file that no search wrote."""
    record: Any = Expert.load(path).training.get("search")
    try:
        task, share = str(record["task"]), float(record["share"])
    except (TypeError, KeyError, ValueError):
        raise ZweaveError(f"{path} is not a mixture of `zweave expert search`") from None
    return FixedDispatcher(check_name(path.stem), task, share)
