"""Many LoRA adapters served at once, here and elsewhere."""
