"""Cases of the kernels' tests: all combinations of some choices, of which every run takes a few."""

from itertools import product

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "combinations(name=choices, ...): parametrises over all combinations of the choices, dictionaries from ids to "
        "values. Every run takes those in which at most one choice is not its first, and the last choice of each; "
        "`-m exhaustive` takes the others.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers("combinations"):
        metafunc.parametrize(list(mark.kwargs), _cases(mark.kwargs))


def _cases(choices: dict[str, dict[str, object]]) -> list[object]:
    first, last = ([list(choice)[end] for choice in choices.values()] for end in (0, -1))
    cases = []
    for ids in product(*choices.values()):
        others = sum(name != usual for name, usual in zip(ids, first, strict=True))
        marks = () if others <= 1 or list(ids) == last else pytest.mark.exhaustive
        values = (choice[name] for name, choice in zip(ids, choices.values(), strict=True))
        cases.append(pytest.param(*values, id="-".join(ids), marks=marks))
    return cases
