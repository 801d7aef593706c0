"""The training loop: draws batches, follows the schedule, validates, and saves what an interruption must not lose."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ZweaveError
from ..tasks.task import Sample, Task, balanced
from .objective import Loss, PendingLoss, accuracy, pending_loss
from .policy import Policy
from .recipe import Recipe
from .state_file import save_state

SAVE_EVERY = 5
# Steps in a row without a difference between rewards after which training gives up.
NO_SIGNAL_STEPS = 10


@dataclass(frozen=True, slots=True)
class Step:
    """The record of one step.

    reward: mean over the policy.
    accuracy: share of the batch's answers that are right.
    validation: accuracy on the validation samples, after steps that validate.
    improved: whether the expert after this step is the best so far.
    """

    step: int
    reward: float
    accuracy: float
    lr: float
    gradient_norm: float
    seconds: float
    validation: float | None = None
    improved: bool = False


@dataclass(slots=True)
class Progress:
    """Everything that a training continues from, beside the parameters and the optimizer.

    step: steps done.
    no_signal_steps: steps in a row whose answers all got the same reward.
    validations_without_gain: validations since the best one.
    best: accuracy of the best validation.
    """

    step: int = 0
    no_signal_steps: int = 0
    validations_without_gain: int = 0
    best: float = -1.0


def train(
    policy: Policy,
    task: Task,
    samples: list[Sample],
    validation: list[Sample],
    recipe: Recipe,
    state: Path | None = None,
) -> Iterator[Step]:
    """Trains the policy's adapter in place, a step each time the iterator is asked; ends with the best one loaded.

    samples, validation: of the task's splits.
    state: file of the unfinished training, saved every few steps. A training continues from an existing one and ends
        in the same bits as one that was never interrupted.
    Raises ZweaveError, with the last good state kept: when a gradient is not finite, when all answers of ten steps
        in a row got the same reward, and for what the task's reward raises.
    """
    training = Training(policy, task, samples, validation, recipe, state)
    while not training.is_done:
        step = training.step()
        training.save_after(step)
        yield step
    training.load_best()


class Training:
    """A training between its steps: the optimizer, the progress and the best adapter; loads and saves them.

    It is made as `train` is called. Whoever makes its steps calls `save_after` with each, once whatever else is kept of
    the step is written: what is written of steps after the state is repeated, and before it nothing may be missing.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        samples: list[Sample],
        validation: list[Sample],
        recipe: Recipe,
        state: Path | None = None,
    ) -> None:
        if not samples or not validation:
            raise ZweaveError(
                f"the task {task.name} has no samples to {'train' if not samples else 'validate'} on"
            )
        self.policy, self.recipe = policy, recipe
        self._task = task
        self._validation, self._path = validation, state
        self._parameters = policy.adapter.parameters()
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.progress, self.best = Progress(), policy.adapter.state()
        if state is not None and state.exists():
            self._load(state)
        stream = balanced(samples, task.labels, recipe.seed)
        batches = (list(islice(stream, recipe.batch)) for _ in range(recipe.steps))
        self._batches = islice(batches, self.progress.step, None)

    @property
    def is_done(self) -> bool:
        """Whether all steps are made, or the patience is at its end."""
        progress, recipe = self.progress, self.recipe
        return progress.step >= recipe.steps or progress.validations_without_gain >= recipe.patience

    def load_best(self) -> None:
        """Has the policy answer with the best adapter."""
        self.policy.adapter.load_state(self.best)

    def step(self) -> Step:
        """One update on the next batch, and a validation if one is due."""
        start = time.perf_counter()
        pending = self.draw()
        loss = pending.of(self.policy.hidden(pending.prompts, pending.nodes))
        loss.value.backward()
        return self.update(loss, time.perf_counter() - start)

    def draw(self) -> PendingLoss:
        """The next batch and the answers to it; the first half of a step."""
        batch = next(self._batches)
        return pending_loss(self.policy, self._task, self.recipe, self.progress.step, batch)

    def update(self, loss: Loss, seconds: float) -> Step:
        """The second half of a step, after the backward pass.

        seconds: that the step has taken until now.
        """
        start, index = time.perf_counter(), self.progress.step
        norm = self._update(index)
        self.progress.step = index + 1
        self.progress.no_signal_steps = self.progress.no_signal_steps + 1 if loss.no_signal else 0
        self._check_signal(loss.reward)
        seconds += time.perf_counter() - start
        validation, improved = self._validate() if _validates(self.recipe, index) else (None, False)
        rate = self.recipe.lr_at(index)
        return Step(index, loss.reward, loss.accuracy, rate, norm, seconds, validation, improved)

    def save_after(self, step: Step) -> None:
        """Saves the state if it is time after this step, the latest one."""
        # After the first step, too: whatever has a log can be gone on from.
        is_due = step.step == 0 or (step.step + 1) % SAVE_EVERY == 0 or step.validation is not None
        if self._path is not None and is_due:
            self._save(self._path)

    def _update(self, step: int) -> float:
        """Steps the optimizer; returns the norm of the gradient."""
        self.policy.adapter.before_step()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip).item()
        if not math.isfinite(norm):
            raise ZweaveError(f"the gradient of step {step + 1} is not finite: lower the learning rate")
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.policy.adapter.after_step(step)
        return norm

    def _check_signal(self, reward: float) -> None:
        if self.progress.no_signal_steps >= NO_SIGNAL_STEPS:
            raise ZweaveError(
                f"all answers of the last {NO_SIGNAL_STEPS} steps got the same reward ({reward:g}), there is nothing "
                "to learn from: begin with --objective sft, or take an easier task"
            )

    def _validate(self) -> tuple[float, bool]:
        """The accuracy, and whether it is the best so far."""
        progress = self.progress
        found = accuracy(self.policy, self._task, self._validation)
        progress.validations_without_gain = (
            0 if found > progress.best else progress.validations_without_gain + 1
        )
        # Of equals the later, which has trained longer.
        improved = found >= progress.best
        if improved:
            progress.best, self.best = found, self.policy.adapter.state()
        return found, improved

    def _save(self, path: Path) -> None:
        """Writes the state, whole or not at all."""
        state: dict[str, Any] = {
            "adapter": self.policy.adapter.state(),
            "optimizer": self._optimizer.state_dict(),
            "progress": asdict(self.progress),
            "best": self.best,
        }
        save_state(path, state)

    def _load(self, path: Path) -> None:
        try:
            saved = torch.load(path, weights_only=True)
            self._optimizer.load_state_dict(saved["optimizer"])
            self.policy.adapter.load_state(saved["adapter"])
            self.progress, self.best = Progress(**saved["progress"]), saved["best"]
        # A file that is no state fails in any way that torch can.
        except Exception as error:
            raise ZweaveError(f"{path} cannot be gone on from ({type(error).__name__}): delete it") from None


def _validates(recipe: Recipe, step: int) -> bool:
    """Whether validation follows a step. A sparse support is complete only after its last pruning."""
    if step + 1 == recipe.steps:
        return True
    pruned = not recipe.support.startswith("sparse") or 2 * (step + 1) >= recipe.steps
    return (step + 1) % recipe.validate_every == 0 and pruned
