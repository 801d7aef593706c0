"""A model on disk: Hugging Face directories and GGUF files."""

from .checkpoint import Checkpoint, resolve_model
from .model_config import ModelConfig

__all__ = [
    "Checkpoint",
    "ModelConfig",
    "resolve_model",
]
