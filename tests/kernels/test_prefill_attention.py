"""prefill_attention: the reference, and the kernel interpreted on a CPU and on a GPU where there is one."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from zweave.kernels.prefill_attention import prefill_attention_ref, prefill_attention_triton

from .attention_cases import FLOATS, LAYOUTS, MORE_LAYOUTS, Layout
from .interpreter import cut

pytest.importorskip("triton")


@dataclass(frozen=True)
class Case(Layout):
    """chunks: first position and tokens of each, position -1 for padding; spare: added to max_query_len."""

    chunks: tuple[tuple[int, int], ...]
    spare: int = 0


CASES = {
    "chunks": Case(((0, 20), (33, 1), (-1, 5), (15, 18), (7, 0))),
    "tiles of a chunk": Case(((30, 70),), kv_heads=1),
    "beyond 512": Case(((511, 3),), heads=1, kv_heads=1, block_size=32),
    "window": Case(((0, 60), (40, 9)), heads=3, kv_heads=1, window=33),
    "3 heads share": Case(((0, 17),), heads=6, kv_heads=2, spare=70),
} | {name: Case(((60, 9), (0, 1)), **layout) for name, layout in LAYOUTS.items()}
MORE = {
    "beyond 1024": Case(((1030, 2), (500, 30)), heads=2, kv_heads=1),
    "window in the middle of tiles": Case(((500, 199),), heads=2, kv_heads=1, window=100, block_size=32),
} | {f"{name}, long": Case(((0, 99), (100, 1), (63, 70)), **layout) for name, layout in MORE_LAYOUTS.items()}
ALL = [pytest.param(case, id=name) for name, case in (CASES | MORE).items()]
DTYPES = pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)


@pytest.fixture
def problem(pages, fused_queries):
    """Arguments of the op, and what it should return."""

    def make(case: Case, dtype: torch.dtype) -> tuple[tuple[object, ...], Tensor]:
        lengths = [first + count if first >= 0 else 0 for first, count in case.chunks]
        stored = pages(lengths, dtype, case.kv_heads, case.size, case.block_size)
        firsts, counts = (torch.tensor(x, dtype=torch.int32) for x in zip(*case.chunks, strict=True))
        q = fused_queries(int(counts.sum()), case.heads, case.size, dtype)
        if case.window:
            stored.hide_before([max(0, first + 1 - case.window) for first, _ in case.chunks])
        rows = [
            (sequence, first + i if first >= 0 else -1)
            for sequence, (first, count) in enumerate(case.chunks)
            for i in range(count)
        ]
        scale = case.size**-0.5
        wanted = stored.expected(q, *zip(*rows, strict=True), scale, case.window)
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        operands = (q, stored.k_cache, stored.v_cache, stored.block_table, starts, firsts)
        return (*operands, scale, case.window, int(counts.max()) + case.spare), wanted

    return make


@DTYPES
@pytest.mark.parametrize("case", ALL)
def test_reference(case, dtype, problem, tolerance) -> None:
    arguments, wanted = problem(case, dtype)
    y = prefill_attention_ref(*arguments)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, **tolerance(dtype))


@pytest.mark.combinations(case=CASES, dtype=FLOATS)
def test_interpreted(case, dtype, problem, interpreted, tolerance) -> None:
    arguments, wanted = problem(case, dtype)
    y = interpreted(prefill_attention_triton, *arguments)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), cut(wanted, dtype), **tolerance(dtype))


@pytest.mark.exhaustive
@DTYPES
@pytest.mark.parametrize("case", MORE.values(), ids=MORE)
def test_interpreted_more(case, dtype, problem, interpreted, tolerance) -> None:
    test_interpreted(case, dtype, problem, interpreted, tolerance)


def in_chunks(arguments: tuple, size: int) -> list[tuple]:
    """The calls that compute one sequence's queries `size` at a time."""
    q, k, v, table, _, first, scale, window, _ = arguments
    return [
        (
            part,
            *(k, v, table),
            torch.tensor([0, len(part)], dtype=torch.int32),
            first + size * i,
            *(scale, window, size),
        )
        for i, part in enumerate(q.split(size))
    ]


def test_interpreted_chunks_of_a_prompt_are_the_whole(problem, interpreted, tolerance) -> None:
    arguments, _ = problem(Case(((0, 40),), kv_heads=1, window=20), torch.float32)
    whole = interpreted(prefill_attention_triton, *arguments)
    parts = [interpreted(prefill_attention_triton, *call) for call in in_chunks(arguments, 23)]
    torch.testing.assert_close(torch.cat(parts), whole, **tolerance(torch.float32))


def test_interpreted_chunks_do_not_depend_on_the_batch(problem, interpreted) -> None:
    arguments, _ = problem(Case(((0, 30), (-1, 3), (70, 9)), kv_heads=1), torch.float32)
    q, k, v, table, start, first, *rest = arguments
    whole = interpreted(prefill_attention_triton, *arguments)
    for c in (0, 2):
        own = slice(start[c], start[c + 1])
        wide = torch.nn.functional.pad(table[c : c + 1], (0, 9), value=2**30)
        alone = (q[own], k, v, wide, start[c : c + 2] - start[c], first[c : c + 1])
        assert torch.equal(interpreted(prefill_attention_triton, *alone, *rest), whole[own])


@pytest.mark.parametrize("function", ["triton", "ref"])
def test_no_tokens(function, problem, interpreted) -> None:
    (q, k, v, table, start, first, scale, window, _), _ = problem(Case(((0, 3),)), torch.float32)
    arguments = (q[:0], k, v, table, start * 0, first, scale, window, 0)
    y = (
        prefill_attention_ref(*arguments)
        if function == "ref"
        else interpreted(prefill_attention_triton, *arguments)
    )
    assert y.shape == (0, 4, 16)


@pytest.mark.parametrize(
    ("at", "change", "message"),
    [
        (3, lambda t: t[:1], r"query_start must be \[2\]"),
        (4, lambda t: t.long(), "query_start must be"),
        (5, lambda t: t[:1], "first_position must be"),
    ],
    ids=["table", "starts in int64", "first positions"],
)
def test_wrong_operands_are_refused(at, change, message, problem, interpreted) -> None:
    arguments, _ = problem(Case(((0, 3), (4, 2))), torch.float32)
    wrong = [change(value) if i == at else value for i, value in enumerate(arguments)]
    with pytest.raises(ValueError, match=f"^prefill_attention: {message}"):
        interpreted(prefill_attention_triton, *wrong)


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("case", [*ALL, Case(((0, 1000), (2000, 300)), heads=8, size=128)])
def test_on_a_gpu(case, dtype, problem, tolerance, poisoned_outputs) -> None:
    arguments, wanted = problem(case, dtype)
    arguments = [value.cuda() if isinstance(value, Tensor) else value for value in arguments]
    y = prefill_attention_triton(*arguments)
    torch.testing.assert_close(y.cpu().double(), wanted, **tolerance(dtype))
    if len(case.chunks) == 1:
        parts = [prefill_attention_triton(*call) for call in in_chunks(arguments, 23)]
        assert torch.equal(torch.cat(parts), y)
