"""Attributes of "23 ? 45", and operations on the two numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from .attributes import Attribute


@dataclass(frozen=True, slots=True)
class Operation:
    """What is made of two numbers.

    phrases: name the result; the last is held out for the evaluation.
    """

    name: str
    phrases: tuple[str, ...]
    result: Callable[[int, int], int]


def _numbers(name: str, holds: Callable[[int, int], bool], *clauses: str) -> Attribute:
    return Attribute(name, ("numbers",), clauses, lambda text: holds(*text.terms))


NUMBERS = (
    _numbers(
        "first-larger",
        lambda a, b: a > b,
        "the first number is larger than the second",
        "the number on the left is the larger one",
        "the second number is smaller than the first",
        "the larger number comes first",
    ),
    _numbers(
        "first-even",
        lambda a, b: a % 2 == 0,
        "the first number is even",
        "the number on the left is even",
        "the first number can be divided by two",
        "halving the first number leaves no rest",
    ),
    _numbers(
        "second-even",
        lambda a, b: b % 2 == 0,
        "the second number is even",
        "the number on the right is even",
        "the second number can be divided by two",
        "halving the second number leaves no rest",
    ),
    _numbers(
        "sum-even",
        lambda a, b: (a + b) % 2 == 0,
        "the sum of the numbers is even",
        "both numbers add up to an even one",
        "the two numbers are both even or both odd",
        "adding the numbers gives an even result",
    ),
    _numbers(
        "sum-over-100",
        lambda a, b: a + b > 100,
        "the sum of the numbers is over 100",
        "both numbers add up to more than a hundred",
        "the numbers together are larger than 100",
        "adding the numbers gives three digits",
    ),
    _numbers(
        "first-over-50",
        lambda a, b: a > 50,
        "the first number is over 50",
        "the number on the left is larger than fifty",
        "the first number is more than 50",
        "fifty is less than the first number",
    ),
    _numbers(
        "second-over-50",
        lambda a, b: b > 50,
        "the second number is over 50",
        "the number on the right is larger than fifty",
        "the second number is more than 50",
        "fifty is less than the second number",
    ),
    _numbers(
        "close",
        lambda a, b: abs(a - b) < 20,
        "the numbers differ by less than 20",
        "the two numbers are close",
        "the difference of the numbers is below twenty",
        "there is a gap of under 20 between the numbers",
    ),
)

OPERATIONS = (
    Operation(
        "sum", ("the sum of the two numbers", "what both numbers add up to", "the total"), lambda a, b: a + b
    ),
    Operation(
        "difference",
        ("the difference of the numbers", "the larger number minus the smaller", "how far they are apart"),
        lambda a, b: abs(a - b),
    ),
    Operation("larger", ("the larger number", "the greater of the two", "the maximum"), max),
    Operation("smaller", ("the smaller number", "the lesser of the two", "the minimum"), min),
    Operation(
        "first", ("the first number", "the number on the left", "what stands before the sign"), lambda a, b: a
    ),
    Operation(
        "second",
        ("the second number", "the number on the right", "what stands after the sign"),
        lambda a, b: b,
    ),
    Operation(
        "first-units",
        ("the last digit of the first number", "the units of the left number", "how the first number ends"),
        lambda a, b: a % 10,
    ),
    Operation(
        "second-units",
        ("the last digit of the second number", "the units of the right number", "how the second one ends"),
        lambda a, b: b % 10,
    ),
    Operation(
        "first-tens",
        ("the first digit of the first number", "the tens of the left number", "how the first one begins"),
        lambda a, b: a // 10,
    ),
    Operation(
        "second-tens",
        ("the first digit of the second number", "the tens of the right number", "how the second begins"),
        lambda a, b: b // 10,
    ),
    Operation(
        "first-next",
        ("the number after the first one", "the first number plus one", "one more than the left"),
        lambda a, b: a + 1,
    ),
    Operation(
        "second-next",
        ("the number after the second one", "the second number plus one", "one more than the right"),
        lambda a, b: b + 1,
    ),
)
