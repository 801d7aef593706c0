"""The op rope on a CPU; tests/checkpoint/test_rope.py has the tables."""

import pytest
import torch
from torch import Tensor

from zweave.kernels import rope, rope_ref

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
# T, H, G, D
SHAPES = [(0, 2, 1, 8), (1, 1, 1, 2), (1, 9, 3, 64), (63, 4, 2, 6), (17, 3, 1, 70), (199, 2, 2, 128)]


def operands(
    tokens: int, heads: int, kv_heads: int, size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q and k as slices of one product (v lies behind them), tables, positions."""
    random = torch.Generator().manual_seed(tokens + size)
    fused = torch.randn(tokens, (heads + 2 * kv_heads) * size, generator=random).to(dtype)
    q = fused[:, : heads * size].unflatten(1, (heads, size))
    k = fused[:, heads * size : (heads + kv_heads) * size].unflatten(1, (kv_heads, size))
    angle = 6 * torch.rand(300, size // 2, generator=random)
    position = torch.randint(0, 300, (tokens,), generator=random, dtype=torch.int32)
    return q, k, angle.cos(), angle.sin(), position


def exact(x: Tensor, cos: Tensor, sin: Tensor, position: Tensor) -> Tensor:
    """As transformers writes it: x cos + rotate_half(x) sin."""
    c, s = (torch.cat([table, table], 1)[position.long()][:, None].double() for table in (cos, sin))
    low, high = x.double().chunk(2, -1)
    return x.double() * c + torch.cat([-high, low], -1) * s


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", [rope, rope_ref])
def test_values_in_slices_of_a_fused_product(function, shape, dtype, tolerance) -> None:
    q, k, *rest = operands(*shape, dtype)
    right = exact(q, *rest), exact(k, *rest)
    behind = q._base[:, (shape[1] + shape[2]) * shape[3] :].clone()
    function(q, k, *rest)
    for found, expected in zip((q, k), right, strict=True):
        torch.testing.assert_close(found.double(), expected, **tolerance(dtype))
    assert torch.equal(q._base[:, (shape[1] + shape[2]) * shape[3] :], behind)


@DTYPES
def test_a_token_has_the_same_bits_in_every_batch(dtype, threads) -> None:
    q, k, cos, sin, position = operands(65, 9, 3, 64, dtype)
    alone = q.clone(), k.clone()
    threads(2)
    rope(q, k, cos, sin, position)
    threads(1)
    for t in range(65):
        one_q, one_k = (x[t : t + 1].clone() for x in alone)
        rope(one_q, one_k, cos, sin, position[t : t + 1])
        assert torch.equal(one_q[0], q[t]) and torch.equal(one_k[0], k[t])


def test_only_rows_of_used_positions_are_read() -> None:
    q, k, cos, sin, position = operands(5, 2, 1, 10, torch.float32)
    position[:] = torch.tensor([0, 7, 7, 299, 3])
    unused = torch.ones(300, dtype=torch.bool)
    unused[position.long()] = False
    cos[unused], sin[unused] = float("nan"), float("nan")
    rope(q, k, cos, sin, position)
    assert q.isfinite().all() and k.isfinite().all()


@pytest.mark.parametrize("wrong", [-1, 300, 2**31 - 1, -(2**31)])
def test_a_position_outside_the_tables_is_refused_before_anything_is_written(wrong) -> None:
    q, k, cos, sin, position = operands(5, 2, 1, 10, torch.float32)
    before = q.clone()
    position[4] = wrong
    with pytest.raises(RuntimeError, match=r"^rope: position\[4\] is"):
        rope(q, k, cos, sin, position)
    assert torch.equal(q, before)


Q, K, C, S, P = operands(4, 3, 1, 8, torch.float32)
WRONG = {
    "odd head size": (Q[..., :-1], K[..., :-1], C, S, P),
    "q is flat": (Q.flatten(1), K, C, S, P),
    "tokens differ": (Q, K[:-1], C, S, P),
    "k of another dtype": (Q, K.bfloat16(), C, S, P),
    "tables in bf16": (Q, K, C.bfloat16(), S.bfloat16(), P),
    "tables too wide": (Q, K, torch.cat([C, C], 1), torch.cat([S, S], 1), P),
    "sin shorter than cos": (Q, K, C, S[:-1], P),
    "positions in int64": (Q, K, C, S, P.long()),
    "float64": (Q.double(), K.double(), C, S, P),
    "heads before tokens": (Q.transpose(0, 1).contiguous().transpose(0, 1), K, C, S, P),
    "tokens overlap": (Q[:1].expand(4, 3, 8), K, C, S, P),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_operands_are_refused_in_one_line(wrong) -> None:
    with pytest.raises(RuntimeError, match=r"^rope: "):
        rope(*wrong)
