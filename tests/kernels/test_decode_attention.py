"""decode_attention: the reference, and the kernels interpreted on a CPU and on a GPU where there is one."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from zweave.kernels.attention import paged_attention, paged_attention_ref
from zweave.kernels.decode_attention import decode_attention_ref, decode_attention_triton

from .attention_cases import FLOATS, LAYOUTS, MORE_LAYOUTS, Layout
from .interpreter import cut

pytest.importorskip("triton")


@dataclass(frozen=True)
class Case(Layout):
    """lengths: of the sequences, 0 for a padding row."""

    lengths: tuple[int, ...]


CASES = {
    "around a block": Case((1, 16, 17, 0)),
    "splits": Case((513, 0, 1030), heads=2, kv_heads=1),
    "split to the last position": Case((1024,), heads=1, kv_heads=1, block_size=32),
    "window": Case((5, 90), kv_heads=1, window=33),
    "window across splits": Case((600, 1100), heads=1, kv_heads=1, window=100),
    "8 heads share": Case((20, 70), heads=8, kv_heads=1),
} | {name: Case((70, 3, 0), **layout) for name, layout in LAYOUTS.items()}
MORE = {
    "lengths": Case((1, 15, 16, 17, 0, 65, 511, 512, 513, 0, 1030), heads=3, kv_heads=1),
    "17 combined splits": Case((8800,), heads=1, kv_heads=1, block_size=256),
} | {f"{name}, splits": Case((70, 600), **layout) for name, layout in MORE_LAYOUTS.items()}
ALL = [pytest.param(case, id=name) for name, case in (CASES | MORE).items()]
DTYPES = pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)


@pytest.fixture
def problem(pages, fused_queries):
    """Arguments of the op, and what it should return."""

    def make(case: Case, dtype: torch.dtype) -> tuple[tuple[object, ...], Tensor]:
        stored = pages(case.lengths, dtype, case.kv_heads, case.size, case.block_size)
        q = fused_queries(len(case.lengths), case.heads, case.size, dtype)
        position = [length - 1 for length in case.lengths]
        if case.window:
            stored.hide_before([max(0, length - case.window) for length in case.lengths])
        scale = case.size**-0.5
        wanted = stored.expected(q, range(len(q)), position, scale, case.window)
        operands = (q, stored.k_cache, stored.v_cache, stored.block_table)
        return (*operands, torch.tensor(position, dtype=torch.int32), scale, case.window), wanted

    return make


@DTYPES
@pytest.mark.parametrize("case", ALL)
def test_reference(case, dtype, problem, tolerance) -> None:
    arguments, wanted = problem(case, dtype)
    y = decode_attention_ref(*arguments)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, **tolerance(dtype))


@pytest.mark.combinations(case=CASES, dtype=FLOATS)
def test_interpreted(case, dtype, problem, interpreted, tolerance) -> None:
    arguments, wanted = problem(case, dtype)
    y = interpreted(decode_attention_triton, *arguments)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), cut(wanted, dtype), **tolerance(dtype))
    assert not y[arguments[4] < 0].any()


@pytest.mark.exhaustive
@DTYPES
@pytest.mark.parametrize("case", MORE.values(), ids=MORE)
def test_interpreted_more(case, dtype, problem, interpreted, tolerance) -> None:
    test_interpreted(case, dtype, problem, interpreted, tolerance)


def test_interpreted_rows_depend_neither_on_the_batch_nor_on_the_width_of_the_table(
    problem, interpreted
) -> None:
    (q, k, v, table, position, scale, _), _ = problem(Case((40, 0, 530), heads=3, kv_heads=1), torch.float32)
    whole = interpreted(decode_attention_triton, q, k, v, table, position, scale)
    wide = torch.nn.functional.pad(table, (0, 40), value=2**30)
    assert torch.equal(interpreted(decode_attention_triton, q, k, v, wide, position, scale), whole)
    # 48 positions: a single split, and no second kernel.
    for row, width in ((0, 3), (2, 34)):
        alone = (x[row : row + 1] for x in (table[:, :width], position))
        y = interpreted(decode_attention_triton, q[row : row + 1], k, v, *alone, scale)
        assert torch.equal(y[0], whole[row])


def test_interpreted_rows_launched_in_parts_are_the_same(problem, interpreted) -> None:
    arguments, _ = problem(Case((513, 0, 1), heads=1, kv_heads=1), torch.float32)
    whole = interpreted(decode_attention_triton, *arguments)
    patch = "from zweave.kernels import decode_attention as op; op.WORKSPACE_BYTES = {}".format
    interpreted(exec, patch(1))
    try:
        assert torch.equal(interpreted(decode_attention_triton, *arguments), whole)
    finally:
        interpreted(exec, patch(256 * 2**20))


def test_interpreted_rows_of_other_sequences(pages, fused_queries, interpreted, tolerance) -> None:
    stored = pages((30, 9), torch.float32, 2, 16, 16)
    q = fused_queries(4, 4, 16, torch.float32)
    sequence, position = (torch.tensor(x, dtype=torch.int32) for x in ([1, 0, 0, 1], [8, 3, 29, 0]))
    arguments = (q, stored.k_cache, stored.v_cache, stored.block_table)
    wanted = paged_attention_ref(*arguments, sequence, position, 0.25, 6)
    for y in (
        interpreted(decode_attention_triton, *arguments, position, 0.25, 6, sequence),
        decode_attention_ref(*arguments, position, 0.25, 6, sequence),
    ):
        torch.testing.assert_close(y, wanted, **tolerance(torch.float32))


@pytest.mark.parametrize("function", ["triton", "ref"])
def test_no_rows(function, problem, interpreted) -> None:
    (q, k, v, table, position, scale, _), _ = problem(Case((20,)), torch.float32)
    arguments = (q[:0], k, v, table[:0], position[:0], scale)
    y = (
        decode_attention_ref(*arguments)
        if function == "ref"
        else interpreted(decode_attention_triton, *arguments)
    )
    assert y.shape == (0, 4, 16)


WRONG = {
    "head sizes differ": (0, lambda t: t[..., :-1], "want q"),
    "heads cannot share": (0, lambda t: t[:, :3], "want q"),
    "heads apart": (0, lambda t: t[:, ::2], "side by side"),
    "float64": (0, lambda t: t.double(), "must be bfloat16"),
    "caches differ": (2, lambda t: t[:-1], "v_cache must be"),
    "another dtype": (1, lambda t: t.bfloat16(), "k_cache must be"),
    "cache with gaps": (2, lambda t: torch.cat([t, t])[::2], "v_cache must be contiguous"),
    "table in int64": (3, lambda t: t.long(), "block_table must be a matrix of int32"),
    "table of other rows": (3, lambda t: t[:1], "block_table must have 2 rows"),
    "positions in int64": (4, lambda t: t.long(), "position must be"),
}


@pytest.mark.parametrize(("at", "change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_operands_are_refused(at, change, message, problem, interpreted) -> None:
    arguments, _ = problem(Case((20, 3)), torch.float32)
    wrong = [change(value) if i == at else value for i, value in enumerate(arguments)]
    with pytest.raises(ValueError, match=f"^decode_attention: .*{message}"):
        interpreted(decode_attention_triton, *wrong)


@pytest.mark.parametrize(
    ("case", "message"),
    [(Case((9,), block_size=12), "blocks of 12 positions"), (Case((9,), size=257), "heads of 257 numbers")],
    ids=["block size", "head size"],
)
def test_what_the_kernels_do_not_take_is_refused(case, message, problem, interpreted) -> None:
    arguments, _ = problem(case, torch.float32)
    with pytest.raises(NotImplementedError, match=message):
        interpreted(decode_attention_triton, *arguments)


def on_gpu(*arguments: object) -> list[object]:
    return [value.cuda() if isinstance(value, Tensor) else value for value in arguments]


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("case", ALL)
def test_on_a_gpu(case, dtype, problem, tolerance, poisoned_outputs) -> None:
    arguments, wanted = problem(case, dtype)
    arguments = on_gpu(*arguments)
    y = decode_attention_triton(*arguments)
    torch.testing.assert_close(y.cpu().double(), wanted, **tolerance(dtype))
    q, k, v, table, position, *rest = arguments
    wide = torch.nn.functional.pad(table, (0, 600), value=2**30)
    assert torch.equal(decode_attention_triton(q, k, v, wide, position, *rest), y)
    for row in range(len(q)):
        alone = (x[row : row + 1] for x in (table, position))
        assert torch.equal(decode_attention_triton(q[row : row + 1], k, v, *alone, *rest)[0], y[row])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_the_registered_op_on_a_gpu(dtype, pages, fused_queries, tolerance) -> None:
    stored = pages((30, 9), dtype, 2, 16, 16)
    sequence, position = (1, 0, 0, 1), (8, 3, 29, 0)
    q = fused_queries(4, 4, 16, dtype)
    rows = (torch.tensor(x, dtype=torch.int32) for x in (sequence, position))
    y = paged_attention(*on_gpu(q, stored.k_cache, stored.v_cache, stored.block_table, *rows), 0.25, 6)
    wanted = stored.expected(q, sequence, position, 0.25, 6)
    torch.testing.assert_close(y.cpu().double(), wanted, **tolerance(dtype))


@pytest.mark.gpu
def test_a_captured_graph_takes_new_positions_on_a_gpu(problem) -> None:
    arguments = on_gpu(*problem(Case((700, 0, 1030)), torch.bfloat16)[0])
    position = arguments[4]
    decode_attention_triton(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = decode_attention_triton(*arguments)
    position.copy_(torch.tensor([3, -1, 512]))
    graph.replay()
    assert torch.equal(y, decode_attention_triton(*arguments))
