"""Letters of made-up words, without a data file."""

import random
from collections.abc import Callable
from pathlib import Path

from . import prompts
from .task import Sample, Splits, Task

_ONSETS = [
    "b",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
]
_VOWELS = ["a", "e", "i", "o", "u", "ee", "oo"]
_ENDS = ["", *"bdgklmnprst"]
TRAIN, HELD_OUT = 4000, 600


def _word(rng: random.Random) -> str:
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 3))]
    return "".join(syllables) + rng.choice(_ENDS)


def _count(rng: random.Random) -> Sample:
    """Half of the letters asked for stand in the word, or most answers would be 0."""
    word = _word(rng)
    letter = rng.choice(word) if rng.random() < 0.5 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    return Sample(prompts.letter_count(word, letter), f" {word.count(letter)}")


def _last(rng: random.Random) -> Sample:
    words = [_word(rng) for _ in range(3)]
    return Sample(prompts.last_letters(words), f" {''.join(word[-1] for word in words)}")


def _reader(make: Callable[[random.Random], Sample]) -> Callable[[Path | None], Splits]:
    def read(_: Path | None) -> Splits:
        rng = random.Random(0)
        found: dict[str, Sample] = {}
        while len(found) < TRAIN + HELD_OUT:
            sample = make(rng)
            found[sample.prompt] = sample
        samples = list(found.values())
        return Splits(samples[HELD_OUT:], samples[:HELD_OUT])

    return read


TASKS = (
    Task("letter-count", "How often does a letter stand in a word?", _reader(_count), max_tokens=4),
    Task(
        "last-letters",
        "Puts the last letters of three words together.",
        _reader(_last),
        max_tokens=6,
        template=prompts.LAST_LETTERS,
    ),
)
