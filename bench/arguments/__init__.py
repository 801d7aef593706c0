"""The arguments of each bench: these modules load nothing heavy, so that mistakes are told at once."""
