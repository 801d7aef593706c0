"""The forward pass, on tensors alone."""

from .batch import Batch
from .layer_schedule import LayerEntry, LayerExit, LayerSchedule, StateCapture, StatePooling
from .model import Model, ModelOutput
from .weights import Weights

__all__ = [
    "Batch",
    "LayerEntry",
    "LayerExit",
    "LayerSchedule",
    "Model",
    "ModelOutput",
    "StateCapture",
    "StatePooling",
    "Weights",
]
