"""Options that the benches share, and lists in them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from zweave.errors import ZweaveError
from zweave.names import DEFAULT_MODEL
from zweave.options.arguments import positive_number, positive_whole, whole

# Loaded when a bench runs: its arguments are checked before.
if TYPE_CHECKING:
    from .harness import Pace


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model that a bench runs, and its dtype."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="pulled name or directory (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")


def add_pace(parser: argparse.ArgumentParser, rounds: int, seconds: float | None = None) -> None:
    parser.add_argument(
        "--rounds", type=positive_whole, default=rounds, help="runs that a median is of (%(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=positive_number,
        default=seconds,
        help="begin no further round of a case after so long (%(default)s)",
    )


def pace(args: argparse.Namespace, warmup: int = 1) -> Pace:
    """The pace that the options of `add_pace` say; no warm-up where the check of the output is one."""
    from .harness import Pace

    return Pace(args.rounds, args.seconds or float("inf"), at_least=min(3, args.rounds), warmup=warmup)


def numbers(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas, ascending and each once; the type of an option."""
    return sorted({positive_whole(item.strip()) for item in text.split(",")})


def whole_numbers(text: str) -> list[int]:
    """As `numbers`, from 0 on."""
    return sorted({whole(item.strip()) for item in text.split(",")})


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of an option: names separated by commas, all of them known."""

    def names(text: str) -> list[str]:
        try:
            return chosen(text, known)
        except ZweaveError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return names


def chosen(text: str, known: Iterable[str]) -> list[str]:
    """Names separated by commas; ZweaveError for one that is not known."""
    names = [item.strip() for item in text.split(",")]
    known = list(known)
    for name in names:
        if name not in known:
            raise ZweaveError(f"there is no {name!r}: use {', '.join(known)}")
    return list(dict.fromkeys(names))
