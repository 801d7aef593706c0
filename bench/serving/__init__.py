"""Benches of whole engines."""
