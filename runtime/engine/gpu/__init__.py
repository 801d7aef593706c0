"""Steps on a GPU: launched ahead of the results, as graphs where they only decode."""
