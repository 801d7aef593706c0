"""The forward pass, on tensors alone."""

from .batch import Batch
from .model import Model
from .weights import Weights

__all__ = [
    "Batch",
    "Model",
    "Weights",
]
