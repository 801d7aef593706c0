"""Training of experts (needs the extra `zweave[train]`)."""

from zweave.train.loop import Step, train
from zweave.train.policy import Policy
from zweave.train.recipe import Recipe, default_recipe
from zweave.train.run import Run, open_policy

__all__ = ["Policy", "Recipe", "Run", "Step", "default_recipe", "open_policy", "train"]
