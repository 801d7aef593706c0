"""Hugging Face checkpoints that arrive quantised, one format a file."""
