"""Ops with gradients, for training."""
