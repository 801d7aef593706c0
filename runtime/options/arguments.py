"""Types and checks of command line arguments."""

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

from ..errors import shortened

# Of the largest number of 64 bits; no option takes a larger one.
_MOST_DIGITS = 20
T = TypeVar("T")


def positive_whole(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def positive_number(text: str) -> float:
    """A finite number above 0."""
    number = _finite(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number above 0")
    return number


def number_from_zero(text: str) -> float:
    """A finite number of at least 0."""
    number = _finite(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number of at least 0")
    return number


def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values of a kind, separated by commas, none of them twice."""

    def parse(text: str) -> list[T]:
        values = [kind(item.strip()) for item in text.split(",")]
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{shortened(text)} names a value twice")
        return values

    return parse


def _whole(text: str, least: int) -> int:
    is_whole = text.isascii() and text.isdigit()
    if is_whole and len(text) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{shortened(text)}, of {len(text)} digits, is too large")
    if not is_whole or int(text) < least:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a whole number of at least {least}")
    return int(text)


def _finite(text: str) -> float:
    """The number; NaN, which fails every comparison, if it is none or infinite."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
