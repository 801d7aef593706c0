"""A generator that begins near experts that were trained directly, before it learns end to end."""

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...errors import ZweaveError
from ...train.recipe import rate_at
from ..encoders import Encoder
from ..generator import Generator, change
from ..tasks import HiddenTask
from ..trained_experts import TrainedExperts

STEPS = 200
_DESCRIPTIONS = 16
_LR = 2e-3


def experts_of(
    tasks: Sequence[HiddenTask], trained: TrainedExperts, ranks: Mapping[str, int]
) -> TrainedExperts:
    """Those of some tasks.

    ranks: R of each matrix that a generator adapts.
    Raises ZweaveError if no task has an expert, or one that changes matrices that the generator does not.
    """
    own = {task.name: expert for task in tasks if (expert := trained.experts.get(task.name)) is not None}
    if not own:
        raise ZweaveError("none of the experts to begin near is of a task that is learnt")
    for name, expert in own.items():
        if foreign := [module for module in expert.z if module not in ranks]:
            raise ZweaveError(
                f"the expert of {name} changes {foreign[0]}, which the generator does not: give both one first layer"
            )
    return TrainedExperts(own)


def warm_start(
    generator: Generator,
    encoder: Encoder,
    tasks: Sequence[HiddenTask],
    experts: TrainedExperts,
    sigma: Mapping[str, Tensor],
    steps: int = STEPS,
    seed: int = 0,
) -> list[float]:
    """Has descriptions of tasks that have experts of their own make these; the losses of its steps.

    A loss is the mean of ||W' - W*||^2 / ||W* - W||^2 over descriptions, W* being the task's own expert's: 1 where
    the generator makes the base model, 0 where it makes the expert. The reader stays as it is.

    experts: at least one of the tasks', as `experts_of` returns them.
    sigma: [R] of each adapted matrix.
    """
    own = {task.name: z for task in tasks if (z := experts.of(task.name)) is not None}
    with_expert = [task for task in tasks if task.name in own]
    optimizer = torch.optim.AdamW(generator.parts.parameters(), lr=_LR, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for step in range(steps):
        rng = random.Random(f"warm start {seed} {step}")
        drawn = [rng.choice(with_expert) for _ in range(_DESCRIPTIONS)]
        made = generator(encoder.encode([task.describe(rng) for task in drawn]))
        apart, wanted = {}, {}
        for name, part in made.items():
            ones = torch.ones(1, part.shape[1])
            wanted[name] = torch.cat([own[task.name].get(name, ones).float() for task in drawn])
            apart[name] = 1 + part - wanted[name]
        loss = (change(apart, sigma) / change(wanted, sigma).clamp(min=1e-12)).mean()
        for group in optimizer.param_groups:
            group["lr"] = _LR * rate_at(step, steps, 10, 0.4)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parts.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    optimizer.zero_grad()
    return losses
