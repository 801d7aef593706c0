"""GGUF files, converted to the layout of Hugging Face."""
