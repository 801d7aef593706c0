"""Benches of single ops."""
