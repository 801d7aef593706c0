"""Finds the mixture that answers a few examples best."""
