"""A model's factors in few bits, refit with calibration text, kept in the cache."""
