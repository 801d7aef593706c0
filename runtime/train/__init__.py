"""Training of experts (needs the extra `zweave[train]`)."""

from .joint.loop import train_together
from .loop import Step, Training, train
from .policy import Policy
from .recipe import Recipe, default_recipe
from .run import Run, open_policies, open_policy

__all__ = [
    "Policy",
    "Recipe",
    "Run",
    "Step",
    "Training",
    "default_recipe",
    "open_policies",
    "open_policy",
    "train",
    "train_together",
]
