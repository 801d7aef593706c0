"""Arithmetic without a data file. Sums of the same terms, in whatever order, share a split."""

import random
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement, permutations
from pathlib import Path

from . import prompts
from .task import Sample, Splits, Task

HELD_OUT = 600


def _sum(*terms: int) -> Sample:
    return Sample(prompts.addition(*terms), f" {sum(terms)}", {"group": tuple(sorted(terms))})


def _addition(_: Path | None) -> Splits:
    # Pairs are split before they are ordered, so that no b + a is trained whose a + b is held out.
    rng = random.Random(0)
    pairs = list(combinations_with_replacement(range(10, 100), 2))
    rng.shuffle(pairs)
    train = [_sum(*order) for pair in pairs[HELD_OUT:] for order in sorted(set(permutations(pair)))]
    return Splits(train, [_sum(*rng.sample(pair, 2)) for pair in pairs[:HELD_OUT]])


def _subtraction(_: Path | None) -> Splits:
    pairs = list(combinations(range(10, 100), 2))
    random.Random(0).shuffle(pairs)
    samples = [Sample(prompts.subtraction(b, a), f" {b - a}") for a, b in pairs]
    return Splits(samples[HELD_OUT:], samples[:HELD_OUT])


def _chain(_: Path | None) -> Splits:
    rng = random.Random(0)
    chains = list(combinations_with_replacement(range(2, 40), 3))
    rng.shuffle(chains)

    def samples(some: Sequence[tuple[int, ...]]) -> list[Sample]:
        return [_sum(*rng.sample(terms, len(terms))) for terms in some]

    test = samples(chains[:HELD_OUT])
    return Splits(samples(chains[HELD_OUT:6000]), test)


TASKS = (
    Task("addition", "Adds two numbers of two digits.", _addition, max_tokens=5, template=prompts.ARITHMETIC),
    Task(
        "subtraction",
        "Subtracts one number of two digits from another.",
        _subtraction,
        max_tokens=5,
        template=prompts.ARITHMETIC,
    ),
    Task("chained-sum", "Adds three numbers.", _chain, max_tokens=5, template=prompts.ARITHMETIC),
)
