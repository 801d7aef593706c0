"""What the kernels' tests share: a process that interprets, a paged cache, and combinations of cases.

Of all combinations of some choices every run takes a few.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor

from zweave.kernels.mix import mix_triton

Launch = Callable[..., Tensor]
NAN = float("nan")


@dataclass(frozen=True)
class Pages:
    """Sequences in a paged cache in the layout of CUDA.

    k_cache, v_cache: [blocks, G, block_size, D]; what no sequence holds is NaN.
    block_table: [B, n]; what a sequence does not need is 2**30.
    keys, values: of each sequence, [length, G, D].
    """

    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        dtype: torch.dtype,
        kv_heads: int,
        size: int,
        block_size: int,
        spare: int = 2,
    ) -> "Pages":
        """spare: entries of the table beyond the longest sequence."""
        random = torch.Generator().manual_seed(sum(lengths) + size)
        counts = [-(-length // block_size) for length in lengths]
        order = torch.randperm(sum(counts) + 3, generator=random, dtype=torch.int32)
        k_cache, v_cache = torch.full((2, len(order), kv_heads, block_size, size), NAN, dtype=dtype)
        table = torch.full((len(lengths), max(counts) + spare), 2**30, dtype=torch.int32)
        keys, values = [], []
        for row, (length, blocks) in enumerate(zip(lengths, counts, strict=True)):
            table[row, :blocks] = order[sum(counts[:row]) :][:blocks]
            j = torch.arange(length)
            for cache, kept in ((k_cache, keys), (v_cache, values)):
                kept.append(torch.randn(length, kv_heads, size, generator=random).to(dtype))
                cache[table[row].long()[j // block_size], :, j % block_size] = kept[-1]
        return cls(k_cache, v_cache, table, keys, values)

    def hide_before(self, first: Sequence[int]) -> None:
        """Poisons the entries of blocks whose positions all lie before the first that a sequence still sees."""
        for row, position in enumerate(first):
            self.block_table[row, : position // self.k_cache.shape[2]] = 2**30

    def expected(
        self, q: Tensor, sequence: Sequence[int], position: Sequence[int], scale: float, window: int
    ) -> Tensor:
        """Attention in float64, [T, H, D]; 0 at position -1."""
        y = torch.zeros(q.shape, dtype=torch.float64)
        for t, (row, p) in enumerate(zip(sequence, position, strict=True)):
            if p >= 0:
                seen = slice(max(0, p + 1 - window) if window else 0, p + 1)
                k, v = (x[row][seen].double() for x in (self.keys, self.values))
                k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
                score = torch.einsum("hd,jhd->hj", q[t].double(), k) * scale
                y[t] = torch.einsum("hj,jhd->hd", score.softmax(1), v)
        return y


@pytest.fixture(scope="session")
def pages() -> Callable[..., Pages]:
    return Pages.of


@pytest.fixture(scope="session")
def fused_queries() -> Callable[..., Tensor]:
    """Queries [T, heads, size] in rows that go on with NaN, as those of a fused product go on with keys and values."""

    def make(tokens: int, heads: int, size: int, dtype: torch.dtype) -> Tensor:
        random = torch.Generator().manual_seed(tokens + heads)
        fused = torch.full((tokens, (heads + 2) * size), NAN).to(dtype)
        fused[:, : heads * size] = torch.randn(tokens, heads * size, generator=random).to(dtype)
        return fused[:, : heads * size].unflatten(1, (heads, size))

    return make


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
def interpreter() -> Iterator[Launch]:
    """Runs a launcher in a process whose Triton interprets, with outputs that are born as NaN.

    Tensors go there as shared memory: what a launcher changes in place is changed here.
    """
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=torch.use_deterministic_algorithms, initargs=(True,)
    ) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(mix_triton, torch.ones(1, 1), torch.ones(1, 1)).result()
        yield lambda launcher, *arguments: pool.submit(launcher, *arguments).result()


@pytest.fixture(scope="session")
def interpreted(interpreter) -> Launch:
    """The same, for tests without a parameter of this name."""
    return interpreter


@pytest.fixture
def on_few_sms(interpreted) -> Launch:
    """Launches as on a chip of two SMs: a few tiles occupy it, and their splits are summed serially."""
    patch = "from zweave.kernels.triton import gemm_config, gemm_launch; gemm_launch.device_of = {}".format

    def launch(launcher: Callable[..., Tensor], *arguments: object) -> Tensor:
        interpreted(exec, patch("lambda index, few=gemm_config.Device((9, 0), 2): few"))
        try:
            return interpreted(launcher, *arguments)
        finally:
            interpreted(exec, patch("gemm_config.device_of"))

    return launch
