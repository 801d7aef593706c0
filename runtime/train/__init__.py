"""Training of experts (needs the extra `zweave[train]`)."""

from .loop import Step, train
from .policy import Policy
from .recipe import Recipe, default_recipe
from .run import Run, open_policy

__all__ = ["Policy", "Recipe", "Run", "Step", "default_recipe", "open_policy", "train"]
