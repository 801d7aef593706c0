"""Checks that many parts make of what a user gives."""

import operator
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from typing import TypeGuard

from .errors import ZweaveError, shortened


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that a float can hold; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def as_integer(value: object) -> int | None:
    """An integer of any library as Python's own; None for what is none, like True and arrays of one element."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not _is_scalar(value):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return None


def as_number(value: object) -> int | float | None:
    """A finite number of any library as Python's own; None for what is none."""
    number: object = as_integer(value)
    if number is None and not isinstance(value, bool) and _is_scalar(value):
        item = getattr(value, "item", None)
        number = item() if callable(item) else value
        number = float(number) if isinstance(number, Real) and not isinstance(number, bool) else None
    return number if is_number(number) else None


def as_integers(values: object) -> object:
    """Integers of any library, in a sequence or an array of one dimension, as Python's own; others stay as they are."""
    if not isinstance(values, Sequence) and getattr(values, "ndim", 0) == 1:
        values = values.tolist()  # type: ignore[attr-defined]  # numpy's and torch's arrays have it
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray):
        return values
    if all(type(value) is int for value in values):
        return values
    converted = [as_integer(value) for value in values]
    return [value if number is None else number for value, number in zip(values, converted, strict=True)]


def normalise(instance: object, fields: Sequence[str], convert: Callable[[object], object]) -> None:
    """Replaces fields of a frozen dataclass by what they are converted to; where that is None they stay as they are."""
    for name in fields:
        converted = convert(getattr(instance, name))
        if converted is not None:
            object.__setattr__(instance, name, converted)


def _is_scalar(value: object) -> bool:
    """Whether a value has no dimension and is not of a boolean type of numpy or torch."""
    return not getattr(value, "ndim", 0) and "bool" not in str(getattr(value, "dtype", ""))


def check_integer(name: str, value: object, least: int) -> None:
    """Raises ZweaveError unless a value is an integer of at least `least`."""
    if not (is_integer(value) and value >= least):
        raise ZweaveError(f"{name} must be an integer of at least {least}, not {shortened(value)}")


def check_flag(name: str, value: object) -> None:
    """Raises ZweaveError unless a value is True or False."""
    if not isinstance(value, bool):
        raise ZweaveError(f"{name} must be True or False, not {shortened(value)}")


def is_positive(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number above 0 that a float holds."""
    return is_number(value) and value > 0
