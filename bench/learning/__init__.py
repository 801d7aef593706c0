"""Benches of training and search."""
