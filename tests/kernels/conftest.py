"""What the kernels' tests share: combinations of choices, of which every run takes a few, and Triton's interpreter."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor

from zweave.kernels.mix import mix_triton

Launch = Callable[..., Tensor]


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


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Launch]:
    """Runs a launcher in a process whose Triton interprets, with outputs that are born as NaN."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=torch.use_deterministic_algorithms, initargs=(True,)
    ) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(mix_triton, torch.ones(1, 1), torch.ones(1, 1)).result()
        yield lambda launcher, *arguments: pool.submit(launcher, *arguments).result()


@pytest.fixture
def on_few_sms(interpreted) -> Launch:
    """Launches as on a chip of two SMs: a few tiles occupy it, and their splits are summed serially."""
    patch = (
        "from zweave.kernels.triton import gemm, gemm_config, silu_gemm; gemm.device_of = silu_gemm.device_of = {}"
    ).format

    def launch(launcher: Callable[..., Tensor], *arguments: object) -> Tensor:
        interpreted(exec, patch("lambda index, few=gemm_config.Device((9, 0), 2): few"))
        try:
            return interpreted(launcher, *arguments)
        finally:
            interpreted(exec, patch("gemm_config.device_of"))

    return launch
