"""The experts that a server has: by name, from its directory, and from uploads."""
