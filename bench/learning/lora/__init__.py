"""Trained LoRA adapters: made once, kept in the cache, and what they are worth in each way of serving them."""
