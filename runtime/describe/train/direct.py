"""Experts learnt directly, many side by side: each row of a pass under its own z."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ...experts.flat_layout import FlatLayout
from ...tasks.task import Sample, Task, balanced
from ...train.recipe import rate_at
from ...train.state_file import digest_of, load_state, save_state
from .rows import Row, RowModel, told

# Rows of a pass; more are several passes, whose gradients are added up.
PASS = 32
_SAVE_EVERY = 5


@dataclass(frozen=True, slots=True)
class DirectRecipe:
    """How experts are learnt from answers: cross-entropy over the whole vocabulary.

    rows: samples of each expert in a step, the labels equally often.
    lr: AdamW's, after 5 steps of warm-up, and falling over the last 40%.
    clip: largest norm of an expert's gradient.
    """

    steps: int = 40
    rows: int = 8
    lr: float = 2e-3
    clip: float = 1.0
    seed: int = 0

    def lr_at(self, step: int) -> float:
        return self.lr * rate_at(step, self.steps, 5, 0.4)


class DirectTraining:
    """An expert for each task, all of one base model.

    samples: of each task.
    state: file that an unfinished training is gone on from, to the same bits.
    """

    def __init__(
        self,
        model: RowModel,
        tasks: Sequence[Task],
        samples: Sequence[Sequence[Sample]],
        recipe: DirectRecipe,
        state: Path | None = None,
    ) -> None:
        self.model, self.tasks, self.recipe = model, tasks, recipe
        self._layout = FlatLayout.of(model.ranks)
        self.flat = torch.nn.Parameter(torch.ones(len(tasks), self._layout.width))
        self._optimizer = torch.optim.AdamW([self.flat], lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0)
        self._path, self.step = state, 0
        asked = list(zip(tasks, samples, strict=True))
        self._digest = digest_of(model.key, self._layout.width, asdict(recipe), told(asked))
        model.remember(asked)
        if state is not None and state.exists():
            saved = load_state(state, self._digest)
            self.flat.data.copy_(saved["flat"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]
        self._streams = [
            islice(balanced(found, task.labels, recipe.seed), self.step * recipe.rows, None)
            for task, found in zip(tasks, samples, strict=True)
        ]

    @property
    def is_done(self) -> bool:
        return self.step >= self.recipe.steps

    def advance(self) -> float:
        """One update of every expert; the mean loss, in nats an answer."""
        recipe, loss = self.recipe, 0.0
        drawn = [list(islice(stream, recipe.rows)) for stream in self._streams]
        # Neighbours of different tasks: texts of all lengths in every pass.
        rows = [
            Row(task, samples[index], slot)
            for index in range(recipe.rows)
            for slot, (task, samples) in enumerate(zip(self.tasks, drawn, strict=True))
        ]
        for start in range(0, len(rows), PASS):
            log_probs = self.model.scored(rows[start : start + PASS], self.z()).log_probs
            (-log_probs.sum() / recipe.rows).backward()
            loss -= log_probs.sum().item()
        assert self.flat.grad is not None
        norms = self.flat.grad.norm(dim=1, keepdim=True)
        self.flat.grad.mul_((recipe.clip / norms.clamp(min=1e-12)).clamp(max=1.0))
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.lr_at(self.step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        if self._path is not None and (self.step % _SAVE_EVERY == 0 or self.is_done):
            state = {"flat": self.flat.detach(), "optimizer": self._optimizer.state_dict()}
            save_state(self._path, state | {"step": self.step, "digest": self._digest})
        return loss / len(rows)

    def z(self) -> dict[str, Tensor]:
        """[experts, R] of each adapted matrix."""
        return {name: self.flat[:, columns] for name, columns in self._layout.columns.items()}

    def z_of(self, index: int) -> dict[str, Tensor]:
        """z [R] of one expert, rounded as a half-precision file stores it."""
        flat = (self.flat.detach()[index] - 1).half().float() + 1
        return {name: flat[columns].clone() for name, columns in self._layout.columns.items()}


@torch.no_grad()
def right_answers(model: RowModel, task: Task, samples: Sequence[Sample], z: dict[str, Tensor]) -> list[bool]:
    """Whether each answer is greedily said, over the whole vocabulary, under one expert.

    z: [1, R] of each adapted matrix.
    """
    right: list[bool] = []
    for start in range(0, len(samples), PASS):
        rows = [Row(task, sample, 0) for sample in samples[start : start + PASS]]
        right += model.scored(rows, z).is_greedy.tolist()
    return right
