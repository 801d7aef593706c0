"""The training loop: draws batches, follows the schedule, looks at validation, keeps what an abort must not lose."""

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
from ..io.atomic_write import atomic_write
from ..tasks.task import Sample, Task, balanced
from .objective import accuracy, batch_loss
from .policy import Policy
from .recipe import Recipe

SAVE_EVERY = 5
# Steps whose answers all got the same reward, after which training gives up.
EVEN_STEPS = 10


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did. reward: mean over the policy; validation: accuracy, where it was looked at."""

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
    """Everything that a training goes on from, beside the parameters and the optimizer."""

    step: int = 0
    even: int = 0
    looks_without_gain: int = 0
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

    samples, validation: of the task's splits
    state: file of the unfinished training, saved every few steps. One that exists is gone on from, and ends in
        the same bits as a training that was never interrupted.
    Raises ZweaveError, with the last good state kept: when a gradient is not finite, when all answers of ten steps
        in a row got the same reward, and for what the task's reward raises.
    """
    if not samples or not validation:
        raise ZweaveError(
            f"the task {task.name} has no samples to {'train' if not samples else 'validate'} on"
        )
    parameters = policy.adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0)
    progress, best = Progress(), policy.adapter.state()
    if state is not None and state.exists():
        progress, best = _load(state, policy, optimizer)
    stream = balanced(samples, task.labels, recipe.seed)
    batches = (list(islice(stream, recipe.batch)) for _ in range(recipe.steps))
    for index, batch in islice(enumerate(batches), progress.step, None):
        if progress.looks_without_gain >= recipe.patience:
            break
        start = time.perf_counter()
        loss = batch_loss(policy, task, recipe, index, batch)
        loss.value.backward()
        norm = _move(policy, optimizer, parameters, recipe, index)
        progress.step, progress.even = index + 1, progress.even + 1 if loss.even else 0
        _check_even(progress, loss.reward)
        seconds = time.perf_counter() - start
        found, improved = None, False
        if _is_look(recipe, index):
            found = accuracy(policy, task, validation)
            # Of equals the later: it has seen more.
            improved = found >= progress.best
            progress.looks_without_gain = 0 if found > progress.best else progress.looks_without_gain + 1
            if improved:
                progress.best, best = found, policy.adapter.state()
        if state is not None and ((index + 1) % SAVE_EVERY == 0 or found is not None):
            _save(state, policy, optimizer, progress, best)
        rate = recipe.lr_at(index)
        yield Step(index, loss.reward, loss.accuracy, rate, norm, seconds, found, improved)
    policy.adapter.load_state(best)


def _is_look(recipe: Recipe, step: int) -> bool:
    """Whether validation follows a step. An expert of sparse components is one only after the last pruning."""
    if step + 1 == recipe.steps:
        return True
    pruned = not recipe.support.startswith("sparse") or 2 * (step + 1) >= recipe.steps
    return (step + 1) % recipe.validate_every == 0 and pruned


def _move(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    recipe: Recipe,
    step: int,
) -> float:
    """Steps the optimizer; returns the norm of the gradient."""
    policy.adapter.before_step()
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip).item()
    if not math.isfinite(norm):
        raise ZweaveError(f"the gradient of step {step + 1} is not finite: lower the learning rate")
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(step)
    optimizer.step()
    optimizer.zero_grad()
    policy.adapter.after_step(step)
    return norm


def _check_even(progress: Progress, reward: float) -> None:
    if progress.even >= EVEN_STEPS:
        raise ZweaveError(
            f"all answers of the last {EVEN_STEPS} steps got the same reward ({reward:g}), there is nothing to learn "
            "from: begin with --objective sft, or take an easier task"
        )


def _save(
    path: Path, policy: Policy, optimizer: torch.optim.Optimizer, progress: Progress, best: dict[str, Any]
) -> None:
    """Writes the state, whole or not at all."""
    now = {"adapter": policy.adapter.state(), "optimizer": optimizer.state_dict()}
    # Into a file of Python's: on a full disk torch's own writer does not say that it is full.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(now | {"progress": asdict(progress), "best": best}, file)


def _load(path: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, Any]]:
    try:
        saved = torch.load(path, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        policy.adapter.load_state(saved["adapter"])
        return Progress(**saved["progress"]), saved["best"]
    # A file that is no state fails in any way that torch can.
    except Exception as error:
        raise ZweaveError(f"{path} cannot be gone on from ({type(error).__name__}): delete it") from None
