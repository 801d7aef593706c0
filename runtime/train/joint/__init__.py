"""Several trainings in one run, over weights that are in memory once."""
