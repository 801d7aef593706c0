"""Checks that many parts make of what a user gives."""

import sys
from typing import TypeGuard

from .errors import ZweaveError


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that a float can hold; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_integer(name: str, value: object, least: int) -> None:
    """Raises ZweaveError unless a value is an integer of at least `least`."""
    if not (is_integer(value) and value >= least):
        raise ZweaveError(f"{name} must be an integer of at least {least}, not {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raises ZweaveError unless a value is True or False."""
    if not isinstance(value, bool):
        raise ZweaveError(f"{name} must be True or False, not {value!r}")


def is_positive(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number above 0 that a float holds."""
    return is_number(value) and value > 0
