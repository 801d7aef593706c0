"""The interpreters that peers run under."""

import os
from pathlib import Path

from zweave.errors import ZweaveError


def named_python(variable: str, package: str, script: str) -> Path:
    """The interpreter that an environment variable names.

    package, script: what has to be installed there, and which file beside this one makes such an environment.
    Raises ZweaveError with the command that makes one, if the variable names none.
    """
    named = os.environ.get(variable)
    if not named:
        raise ZweaveError(
            f"{variable} names no interpreter with {package}: make one with `bench/serving/peers/{script} DIR`"
        )
    path = Path(named).absolute()
    if not os.access(path, os.X_OK):
        raise ZweaveError(f"{variable}: {path} is no interpreter")
    return path
