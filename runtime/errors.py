"""The one exception that zweave raises for anything a user can mend, and what its line quotes of others."""

import sys


class ZweaveError(Exception):
    """Says in one line what is wrong and what to do; the command line prints it and exits with 1."""


def one_line(error: BaseException, with_type: bool = False) -> str:
    """An error's message without line breaks, cut to 200 characters.

    with_type: the error's type goes first, as Python prints it. An error without a message is told by its type alone.
    """
    message, kind = " ".join(str(error).split()), type(error).__name__
    if not message:
        return kind
    return _cut(f"{kind}: {message}" if with_type else message, 200)


def shortened(value: object, limit: int = 40) -> str:
    """A value as Python writes it, cut to a number of characters."""
    try:
        return _cut(repr(value), limit)
    except ValueError:
        # Python writes out no integer of more digits than this.
        return f"a number of more than {sys.get_int_max_str_digits()} digits"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
