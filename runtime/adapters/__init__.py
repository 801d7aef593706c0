"""LoRA adapters: read as PEFT saves them, and kept resident as components beside those of the decomposition."""

from .lora import Lora, LoraPair
from .peft_directory import read_peft

__all__ = ["Lora", "LoraPair", "read_peft"]
