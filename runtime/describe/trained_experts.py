"""Experts that were trained directly on hidden tasks: what a generator is measured against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ZweaveError
from ..experts.expert import Expert
from .describer import Describer

_TASK = "hidden:"
# Of the softmax over cosines: two wordings of one task are some .1 nearer to each other than to those of another.
_TEMPERATURE = 0.05


def load_static(path: Path, base_digest: str) -> Expert:
    """The expert of `zweave train-describe --static`; ZweaveError for any other, or for one of another model."""
    expert = Expert.load(path)
    if expert.base_digest != base_digest or expert.scope != "after_prompt":
        raise ZweaveError(f"{path}: is no expert of zweave train-describe --static for this model")
    return expert


@dataclass(frozen=True, slots=True, eq=False)
class TrainedExperts:
    """Experts by the names of their hidden tasks.

    experts: act after the prompt.
    """

    experts: Mapping[str, Expert]

    @classmethod
    def load(cls, folder: Path, base_digest: str) -> "TrainedExperts":
        """Those that `zweave bench hidden-tasks` wrote; ZweaveError if there is none, or one of another model."""
        loaded = {path: Expert.load(path) for path in sorted(folder.glob("*.safetensors"))}
        found: dict[str, Expert] = {}
        for path, expert in loaded.items():
            task = expert.training.get("task")
            if not isinstance(task, str) or not task.startswith(_TASK):
                continue
            if expert.base_digest != base_digest:
                raise ZweaveError(f"{path}: the expert was trained for other weights")
            found[task.removeprefix(_TASK)] = expert
        if not found:
            raise ZweaveError(f"{folder} holds no experts of hidden tasks: run zweave bench hidden-tasks")
        return cls(found)

    def of(self, task: str) -> dict[str, Tensor] | None:
        """z [1, R] of a task's own expert, if there is one."""
        expert = self.experts.get(task)
        return None if expert is None else {name: part[None] for name, part in expert.z.items()}

    def mixed(self, described: Sequence[str], describer: Describer) -> dict[str, Tensor] | None:
        """z [descriptions, R] of mixtures of known tasks' experts, weighted by how alike the descriptions are.

        None where no known task has an expert.
        """
        known = [name for name in describer.trained.known_tasks if name in self.experts]
        if not known:
            return None
        experts = [self.experts[name] for name in known]
        theirs = describer.states([expert.description for expert in experts]).mean()
        weights = (describer.states(described).mean() @ theirs.T / _TEMPERATURE).softmax(-1)
        modules = dict.fromkeys(name for expert in experts for name in expert.z)
        rank = {name: len(part) for expert in experts for name, part in expert.z.items()}
        return {
            name: weights
            @ torch.stack([expert.z.get(name, torch.ones(rank[name])).float() for expert in experts])
            for name in modules
        }
