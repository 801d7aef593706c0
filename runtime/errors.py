"""The one exception that zweave raises for anything a user can mend."""


class ZweaveError(Exception):
    """Says in one line what is wrong and what to do; the command line prints it and exits with 1."""
