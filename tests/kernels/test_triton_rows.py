"""The Triton kernels between the products of a layer, interpreted on a CPU; see also compile/test_layer.py."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from zweave.kernels.pool_states import pool_states_ref, pool_states_triton
from zweave.kernels.rms_norm import add_rms_norm_ref, add_rms_norm_triton, rms_norm_ref, rms_norm_triton
from zweave.kernels.rope_store import rope_store_ref, rope_store_triton
from zweave.kernels.scale_by_slot import scale_by_slot_ref, scale_by_slot_triton
from zweave.kernels.silu_mul import silu_mul_ref, silu_mul_triton

pytest.importorskip("triton")

NAN = float("nan")
FLOATS = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16}
# T, N
SHAPES = {
    "63 tokens": (63, 33),
    "one token": (1, 1),
    "empty": (0, 8),
    "1000 wide": (3, 1000),
    "2100 wide": (5, 2100),
}
HOW = {"interpreted": True, "reference": False}


@pytest.fixture
def run(interpreter, request) -> Callable[..., Tensor | None]:
    """Calls the launcher, interpreted, or the reference."""

    def call(launcher: Callable, reference: Callable, *arguments: object) -> Tensor | None:
        return (
            interpreter(launcher, *arguments)
            if request.getfixturevalue("interpreted")
            else reference(*arguments)
        )

    return call


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def beside(tensor: Tensor) -> Tensor:
    """A copy in the middle columns of wider rows of NaN."""
    around = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 5), NAN)
    around[..., 2:-3] = tensor
    return around[..., 2:-3]


def around_is_untouched(view: Tensor) -> bool:
    wide = view._base
    return bool(wide[..., :2].isnan().all() and wide[..., -3:].isnan().all())


def assert_near(found: Tensor, exact: Tensor, dtype: torch.dtype, tolerance: Callable) -> None:
    # The interpreter cuts bf16 off instead of rounding it: twice the error of a rounding.
    limits = {name: value * (1 + (dtype == torch.bfloat16)) for name, value in tolerance(dtype).items()}
    torch.testing.assert_close(found.double(), exact, **limits)


@pytest.mark.combinations(
    interpreted=HOW, shape=SHAPES, dtype=FLOATS, norm={"f32 weight": torch.float32, "own weight": None}
)
def test_norms(interpreted, shape, dtype, norm, run, tolerance) -> None:
    x, residual = beside(normal(*shape, dtype=dtype)), beside(3 * normal(*shape))
    weight = normal(shape[1]).to(norm or dtype)
    stream = residual.double() + x.double()
    scaled = [
        v * (v.square().mean(-1, keepdim=True) + 0.1).rsqrt() * weight.double() for v in (x.double(), stream)
    ]
    y = run(rms_norm_triton, rms_norm_ref, x, weight, 0.1)
    assert y.dtype == dtype
    assert_near(y, scaled[0], dtype, tolerance)
    y = run(add_rms_norm_triton, add_rms_norm_ref, x, residual, weight, 0.1)
    assert_near(y, scaled[1], dtype, tolerance)
    assert_near(residual, stream, torch.float32, tolerance)
    assert around_is_untouched(residual)


def test_a_norm_of_too_wide_a_row_is_refused(interpreter) -> None:
    with pytest.raises(ValueError, match="at most 16384 numbers, not 16385"):
        interpreter(rms_norm_triton, torch.ones(1, 16385), torch.ones(16385), 0.1)


@pytest.mark.combinations(interpreted=HOW, shape=SHAPES, dtype=FLOATS)
def test_silu_mul(interpreted, shape, dtype, run, tolerance) -> None:
    gate, up = beside(normal(*shape, dtype=dtype)), beside(normal(*shape).flip(0).to(dtype))
    if gate.numel():
        gate[-1, -1] = -1e4
    y = run(silu_mul_triton, silu_mul_ref, gate, up)
    assert_near(y, torch.nn.functional.silu(gate.double()) * up.double(), dtype, tolerance)


@pytest.mark.combinations(
    interpreted=HOW, shape=SHAPES, dtype=FLOATS, zero_base={"base": False, "zero base": True}
)
def test_scale_by_slot(interpreted, shape, dtype, zero_base, run, tolerance) -> None:
    table = beside(1 + 0.1 * normal(3, shape[1]))
    slot = torch.arange(shape[0], dtype=torch.int32) % 3
    slot[1:3] = torch.tensor([-1, 3], dtype=torch.int32)[: len(slot[1:3])]
    h = beside(normal(*shape, dtype=dtype))
    exact = h.double() * table.double()[slot.clamp(0, 2).long()]
    exact[(slot < 0) | (slot > 2)] = NAN
    if zero_base:
        exact[slot == 0] = 0
        table[0] = NAN
        h[slot == 0] = NAN
    run(scale_by_slot_triton, scale_by_slot_ref, h, table, slot, zero_base)
    unknown = exact.isnan()
    assert h[unknown].isnan().all()
    assert_near(h[~unknown], exact[~unknown], dtype, tolerance)
    assert around_is_untouched(h)


# T, H, G, D, block_size
HEADS = {
    "GQA": (7, 9, 3, 8, 4),
    "odd half": (3, 4, 5, 6, 3),
    "MHA": (2, 1, 1, 2, 1),
    "D 128": (2, 4, 1, 128, 16),
}


@pytest.mark.combinations(interpreted=HOW, heads=HEADS, dtype=FLOATS, normed={"plain": False, "normed": True})
def test_rope_store(interpreted, heads, dtype, normed, run, tolerance) -> None:
    T, H, G, D, size = heads
    fused = normal(T, (H + 2 * G) * D, dtype=dtype)
    q, k, v = (part.unflatten(1, (-1, D)) for part in fused.split([H * D, G * D, G * D], 1))
    angle = normal(20, D // 2)
    cos, sin = angle.cos(), angle.sin()
    position = (torch.arange(T, dtype=torch.int32) * 5) % 17
    unread = torch.ones(20, dtype=torch.bool)
    unread[position.long()] = False
    cos[unread] = sin[unread] = NAN
    kv_index = (torch.arange(T) * 3 + 1) % (4 * size)
    position[1], kv_index[1] = -1, 2**60
    pages = torch.full((2, 4, G, size, D), NAN, dtype=dtype)
    norms = [1 + 0.1 * normal(D), 1 - 0.1 * normal(D).to(dtype)] if normed else [None, None]

    def exact(x: Tensor, norm: Tensor | None) -> Tensor:
        wide = x.double()
        if norm is not None:
            wide = wide * (wide.square().mean(-1, keepdim=True) + 0.1).rsqrt() * norm.double()
        c, s = (table.double()[position.clamp(0).long()][:, None] for table in (cos, sin))
        low, high = wide.chunk(2, -1)
        return torch.cat([low * c - high * s, high * c + low * s], -1)

    wanted_q, wanted_k, before = exact(q, norms[0]), exact(k, norms[1]), fused.clone()
    run(rope_store_triton, rope_store_ref, q, k, v, cos, sin, position, kv_index, *pages, *norms, 0.1)
    used = position >= 0
    assert_near(q[used], wanted_q[used], dtype, tolerance)
    assert torch.equal(fused[~used], before[~used])
    assert torch.equal(fused[:, H * D :], before[:, H * D :])
    block, offset = kv_index[used] // size, kv_index[used] % size
    assert_near(pages[0][block, :, offset], wanted_k[used], dtype, tolerance)
    assert torch.equal(pages[1][block, :, offset], v[used])
    pages[:, block, :, offset] = NAN
    assert pages.isnan().all()


def test_a_position_beyond_the_tables_gives_nan(interpreter) -> None:
    q, k, v = normal(1, 1, 2), normal(1, 1, 2), normal(1, 1, 2)
    pages = torch.zeros(2, 1, 1, 1, 2)
    position = torch.tensor([3], dtype=torch.int32)
    interpreter(
        rope_store_triton,
        q,
        k,
        v,
        torch.ones(3, 1),
        torch.ones(3, 1),
        position,
        torch.zeros(1).long(),
        *pages,
    )
    assert q.isnan().all() and pages[0].isnan().all()


def test_rope_store_refuses_heads_that_lie_apart(interpreter) -> None:
    q, k, pages = torch.zeros(1, 2, 4)[..., :2], torch.zeros(1, 1, 2), torch.zeros(2, 1, 1, 1, 2)
    position, table = torch.zeros(1, dtype=torch.int32), torch.ones(1, 1)
    with pytest.raises(ValueError, match="heads of a token"):
        interpreter(rope_store_triton, q, k, k, table, table, position, position.long(), *pages)


@pytest.mark.combinations(interpreted=HOW, hidden={"70": 70, "1": 1, "128": 128}, dtype=FLOATS)
def test_pooled_states_have_numpys_bits(interpreted, hidden, dtype, run) -> None:
    lengths, starts = [5, 1, 4, 3], [0, 5, 6, 10, 13]
    x, residual = beside(normal(13, hidden, dtype=dtype)), beside(100 * normal(13, hidden))
    x[5], residual[5] = -0.0, -0.0
    sums = beside(1e3 * normal(5, hidden).double())
    ints = lambda *values: torch.tensor(values, dtype=torch.int32)  # noqa: E731
    # Chunk 1 starts anew over poison, chunk 2 pools two of four tokens, chunk 3 is padding.
    sums[1], row, first, count = NAN, ints(4, 1, 0, 2**30), ints(0, 1, 0, 1), [5, 1, 2, 0]
    x[8:], residual[8:] = NAN, NAN
    wanted = sums.numpy().copy()
    for b, start in enumerate(starts[:-2]):
        states = (residual + x)[start : start + count[b]].numpy().astype(np.float64)
        if not first[b]:
            states[0] += wanted[row[b]]
        wanted[row[b]] = np.add.accumulate(states, axis=0)[-1]
    assert sum(lengths) == starts[-1]
    run(pool_states_triton, pool_states_ref, x, residual, sums, ints(*starts), row, first, ints(*count))
    assert sums.contiguous().numpy().tobytes() == wanted.tobytes()
    assert around_is_untouched(sums)


@pytest.mark.parametrize("interpreted", HOW.values(), ids=HOW)
def test_a_pooled_prompt_has_the_same_bits_in_one_chunk_and_in_two(interpreted, run) -> None:
    ints = lambda *values: torch.tensor(values, dtype=torch.int32)  # noqa: E731
    x, residual, sums = normal(9, 3), 100 * normal(9, 3), torch.full((2, 3), NAN, dtype=torch.float64)
    pool = lambda *rest: run(pool_states_triton, pool_states_ref, x, residual, sums, *rest)  # noqa: E731
    pool(ints(0, 9), ints(0), ints(1), ints(9))
    pool(ints(0, 4), ints(1), ints(1), ints(4))
    pool(ints(4, 9), ints(1), ints(0), ints(5))
    assert torch.equal(sums[0], sums[1])
