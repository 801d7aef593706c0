"""Benches of the GPU engine, which need no network: models of random weights stand in for real ones."""
