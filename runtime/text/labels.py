"""Finds the label that an answer says."""

import re
from collections.abc import Iterable

# What may follow a label: the end, or white space, after closing punctuation or none.
_AFTER = re.compile(r"[.,;:!?\"')\]]*(\s|$)")


def label_said(answer: str, labels: Iterable[str]) -> str | None:
    """The longest label that an answer begins with, but for white space before it; None if it begins with none.

    A model that was not trained to stop after a label goes on with other words: they do not count.
    """
    text = answer.strip()
    said = [label for label in labels if text.startswith(label.strip())]
    return max((one for one in said if _AFTER.match(text, len(one.strip()))), key=len, default=None)
