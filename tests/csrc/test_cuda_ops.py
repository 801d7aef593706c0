"""The CUDA decode ops: refused by name where they are missing, checked on a GPU where they are built."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from zweave.kernels import cuda_decode
from zweave.kernels.cuda_decode import linear_decode, svf_delta_linear_decode, svf_linear_decode, takes

needs_build = pytest.mark.skipif(not cuda_decode.is_built(), reason="needs a build with CUDA")
# tokens, outputs, inputs, rank
SHAPES = {
    "one token": (1, 576, 1536, 576),
    "odd": (9, 63, 199, 31),
    "16 tokens": (16, 4096, 4096, 512),
    "four row warps": (32, 14336, 1000, 64),
    "many tokens": (100, 192, 576, 192),
    "no tokens": (0, 64, 64, 64),
    "no components": (3, 64, 64, 0),
}
WAYS = ("linear", "svf_linear", "svf_delta_linear")


def problem(tokens: int, outputs: int, inputs: int, rank: int, device: str = "cuda") -> SimpleNamespace:
    """Random operands with results of size one and three slots."""
    random = torch.Generator().manual_seed(tokens + outputs)
    normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    scale = torch.rand(3, rank, generator=random) + 0.5
    return SimpleNamespace(
        x=normal(tokens, inputs).bfloat16().to(device),
        w=(normal(outputs, inputs) / inputs**0.5).bfloat16().to(device),
        vt=(normal(rank, inputs) / inputs**0.5).bfloat16().to(device),
        u=(normal(outputs, rank) / max(rank, 1) ** 0.5).bfloat16().to(device),
        scale=scale.to(device),
        delta=torch.cat([torch.zeros(1, rank), scale[1:]]).to(device),
        slot=torch.randint(0, 3, (tokens,), generator=random, dtype=torch.int32).to(device),
        bias=normal(outputs).bfloat16().to(device),
    )


def call(way: str, p: SimpleNamespace, rows: slice = slice(None)) -> Tensor:
    if way == "linear":
        return linear_decode(p.x[rows], p.w, p.bias)
    if way == "svf_linear":
        return svf_linear_decode(p.x[rows], p.vt, p.u, p.scale, p.slot[rows], p.bias)
    return svf_delta_linear_decode(p.x[rows], p.w, p.vt, p.u, p.delta, p.slot[rows], p.bias)


def expected(way: str, p: SimpleNamespace) -> Tensor:
    """The float64 result, rounded to bf16 between the products."""
    x, table = p.x.double(), p.scale if way == "svf_linear" else p.delta
    y = p.bias.double().expand(x.shape[0], -1)
    if way != "svf_linear":
        y = y + x @ p.w.double().T
    if way != "linear":
        hidden = (x @ p.vt.double().T * table[p.slot.long()].double()).bfloat16()
        y = y + hidden.double() @ p.u.double().T
    return y


def test_a_cpu_tensor_is_not_for_the_decode_kernels() -> None:
    assert not takes(torch.ones(1, 8, dtype=torch.bfloat16))


@pytest.mark.skipif(cuda_decode.is_built(), reason="built with CUDA")
@pytest.mark.parametrize("way", WAYS)
def test_without_cuda_a_call_says_what_is_missing(way) -> None:
    with pytest.raises(NotImplementedError, match=f"{way}_decode: zweave was built without CUDA"):
        call(way, problem(1, 8, 8, 8, device="cpu"))


@pytest.mark.gpu
@needs_build
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, way, tolerance, poisoned_outputs) -> None:
    p = problem(*shape)
    torch.testing.assert_close(call(way, p).double(), expected(way, p), **tolerance(torch.bfloat16))


@pytest.mark.gpu
@needs_build
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("outputs", [576, 4096, 14336])
def test_a_row_does_not_depend_on_its_batch(outputs, way) -> None:
    p = problem(70, outputs, 1536, 512)
    whole = call(way, p)
    for tokens in (1, 8, 9, 16, 17, 33):
        assert torch.equal(call(way, p, slice(70 - tokens, 70)), whole[-tokens:]), tokens


@pytest.mark.gpu
@needs_build
def test_tokens_out_of_line_give_the_same_bits() -> None:
    p = problem(5, 4096, 256, 64)
    apart = torch.empty(5, 259, dtype=torch.bfloat16, device="cuda")[:, 3:]
    apart.copy_(p.x)
    whole = call("svf_linear", p)
    p.x = apart
    assert torch.equal(call("svf_linear", p), whole)


@pytest.mark.gpu
@needs_build
@pytest.mark.parametrize("way", WAYS[1:])
def test_slots_outside_the_table_give_nan(way) -> None:
    p = problem(4, 64, 64, 64)
    p.slot = torch.tensor([-1, 0, 3, 2**31 - 1], dtype=torch.int32, device="cuda")
    y = call(way, p)
    assert y[[0, 2, 3]].isnan().all() and not y[1].isnan().any()


@pytest.mark.gpu
@needs_build
def test_base_tokens_of_a_delta_get_the_plain_linear_bit_for_bit() -> None:
    p = problem(16, 4096, 1536, 192)
    p.slot[::2] = 0
    assert torch.equal(call("svf_delta_linear", p)[::2], call("linear", p)[::2])


@pytest.mark.gpu
@needs_build
@pytest.mark.parametrize("way", WAYS)
def test_a_captured_graph_reads_new_tokens_and_slots(way) -> None:
    p, other = problem(8, 576, 1536, 576), problem(9, 576, 1536, 576)
    call(way, p)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call(way, p)
    p.x.copy_(other.x[:8])
    p.slot.copy_(other.slot[:8])
    for _ in range(100):
        y.fill_(float("nan"))
        graph.replay()
    assert torch.equal(y, call(way, p))


@pytest.mark.gpu
@needs_build
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda t: t.float(), "x must be .*BFloat16"),
        ("vt", lambda t: t[:-1], r"vt must have shape \[4, 6\]"),
        ("u", lambda t: t.T.contiguous().T, "u must be contiguous"),
        ("scale", lambda t: t.double(), "scale must be Float"),
        ("slot", lambda t: t.long(), "slot must be Int"),
        ("bias", lambda t: t.cpu(), "bias must be BFloat16 on cuda:0"),
    ],
)
def test_the_wrong_argument_is_named(name, change, message) -> None:
    p = problem(7, 5, 6, 4)
    setattr(p, name, change(getattr(p, name)))
    with pytest.raises(RuntimeError, match=message):
        call("svf_linear", p)


@pytest.mark.gpu
@needs_build
def test_opcheck() -> None:
    p = problem(3, 40, 24, 16)
    checked = torch.library.opcheck
    checked(torch.ops.zweave.linear_decode.default, (p.x, p.w, p.bias))
    checked(torch.ops.zweave.svf_linear_decode.default, (p.x, p.vt, p.u, p.scale, p.slot, p.bias))
    operands = (p.x, p.w, p.vt, p.u, p.delta, p.slot, p.bias)
    checked(torch.ops.zweave.svf_delta_linear_decode.default, operands)
