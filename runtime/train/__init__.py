"""Training of z-vector experts by reinforcement (needs the extra `zweave[train]`)."""

from zweave.train.loop import Recipe, train_expert
from zweave.train.svf import SvfLinear, adapt
from zweave.train.tasks import TASKS, Sample, Task

__all__ = ["TASKS", "Recipe", "Sample", "SvfLinear", "Task", "adapt", "train_expert"]
