"""Few-shot search: the mixture that answers a few samples best."""
