"""The arguments of each command, in modules that import nothing heavy: a mistake in them is told at once."""
