"""LoRA adapters: read as PEFT saves them, and kept resident as components beside those of the decomposition."""
