"""What PyTorch is told about the ops: schemas, fakes, gradients, CUDA implementations, compilation."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zweave.kernels import Packed, Quantized, empty_kv, mix, pack, quantize, svf_linear, unpack
from zweave.kernels.layout.packed import FORMATS
from zweave.kernels.svf_delta_linear import svf_delta_linear_ref

OPS = {
    "pack",
    "unpack",
    "linear",
    "svf_linear",
    "svf_delta_linear",
    "mix",
    "greedy",
    "rms_norm",
    "add_rms_norm",
    "rope",
    "silu_mul",
    "write_kv",
    "paged_attention",
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
RANDOM = torch.Generator().manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=RANDOM).to(dtype)


def integers(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def panels(weight: Tensor) -> Tensor:
    return torch.ops.zweave.pack.default(weight)


def op_arguments(name: str, dtype: torch.dtype, kernel_order: Callable[[Tensor], Tensor]) -> list[tuple]:
    """Arguments for an op, awkward sizes among them; kernel_order packs a matrix."""
    like = {"dtype": dtype}
    packed = kernel_order(normal(37, 21, **like))
    vt, u = normal(19, 21, **like), normal(37, 19, **like)
    caches = [normal(*cache.shape, **like) for cache in empty_kv(6, 2, 4, 8, dtype, torch.device("cpu"))]
    svf = normal(5, 19), integers(0, 1, 4), normal(37, **like), 37
    int8, int4 = quantize(vt.float(), "int8"), quantize(u.float(), "int4")
    return {
        "pack": [(normal(37, 21, **like),), (normal(64, 32, **like),), (int8.data,), (int4.data,)],
        "unpack": [(packed, 37, 21)],
        "linear": [
            (normal(3, 21, **like), packed, None, 37),
            (normal(3, 21, **like), normal(37, 21, **like), normal(37, **like), 37, torch.float32),
            (normal(0, 21, **like), packed, None, 37),
        ],
        "svf_linear": [
            (normal(3, 21, **like), vt, u, *svf),
            (normal(3, 21, **like), kernel_order(vt), kernel_order(u), *svf),
            (normal(3, 21, **like).requires_grad_(), vt, u, normal(5, 19).requires_grad_(), *svf[1:]),
        ],
        "mix": [(normal(5, 19), normal(2, 5)), (normal(5, 19), normal(0, 5))],
        "svf_delta_linear": [
            (normal(3, 21, **like), packed, kernel_order(vt), kernel_order(u), *svf),
            (normal(3, 21, **like), normal(37, 21, **like), vt, u, *svf),
            (
                *(normal(3, 21, **like), packed, kernel_order(int8.data), kernel_order(int4.data), *svf),
                *(kernel_order(int8.scale), kernel_order(int4.scale)),
            ),
        ],
        "greedy": [(normal(3, 70),), (normal(0, 5),)],
        "rms_norm": [
            (normal(3, 21, **like), normal(21), 1e-5),
            (normal(3, 42, **like)[:, :21], normal(21, **like), 1e-5),
        ],
        "add_rms_norm": [(normal(3, 21, **like), normal(3, 21), normal(21, **like), 1e-5)],
        "rope": [
            (normal(3, 4, 8, **like), normal(3, 2, 8, **like), normal(9, 4), normal(9, 4), integers(0, 8, 3))
        ],
        "silu_mul": [(normal(3, 21, **like), normal(3, 21, **like)), normal(3, 42, **like).split(21, 1)],
        "write_kv": [
            (normal(3, 2, 8, **like), normal(3, 2, 8, **like), *caches, integers(0, 23, 7, dtype=torch.int64))
        ],
        "paged_attention": [
            (
                normal(3, 4, 8, **like),
                *caches,
                integers(5, 1, 2, 0).view(2, 2),
                integers(0, 1, 1),
                integers(6, 0, 3),
                0.35,
                window,
            )
            for window in (0, 2)
        ],
    }[name]


def test_the_list_of_ops_is_complete() -> None:
    names = torch._C._dispatch_get_all_op_names()
    assert {name.removeprefix("zweave::") for name in names if name.startswith("zweave::")} == OPS


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("key", ["CPU", "CUDA", "Meta"])
def test_every_op_has_an_implementation(name, key) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"zweave::{name}", key)


@pytest.mark.combinations(
    name={name: name for name in ("svf_linear", *sorted(OPS - {"svf_linear"}))},
    dtype={"bf16": torch.bfloat16, "f32": torch.float32},
)
def test_opcheck(name, dtype) -> None:
    for arguments in op_arguments(name, dtype, panels):
        torch.library.opcheck(getattr(torch.ops.zweave, name).default, tuple(arguments))


@DTYPES
def test_weights_pack_to_a_matrix_on_a_gpu(dtype) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        packed = torch.ops.zweave.pack(torch.empty(37, 21, dtype=dtype))
        assert packed.shape == (37, 21) and packed.device.type == "cuda"
        assert torch.ops.zweave.unpack(packed, 37, 21).shape == (37, 21)


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("key", ["XPU", "MPS", "HPU"])
def test_no_op_falls_back_on_another_device(name, key) -> None:
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"zweave::{name}", key)


class Block(torch.nn.Module):
    """Makes a mixture, appends it to the table and runs two linears under it."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        vt, u = normal(24, 24), normal(24, 24)
        self.vt: Packed | Tensor = pack(vt) if packed else vt
        self.u: Packed | Tensor = pack(u) if packed else u

    def forward(self, x: Tensor, table: Tensor, alpha: Tensor, slot: Tensor) -> Tensor:
        scale = torch.cat([table, mix(table, alpha)])
        hidden = torch.nn.functional.silu(svf_linear(x, self.vt, self.u, scale, slot)) * 0.1
        return svf_linear(hidden, self.vt, self.u, scale, slot) + x


def block_arguments(tokens: int) -> tuple[Tensor, ...]:
    slot = torch.arange(tokens, dtype=torch.int32) % 4
    return normal(tokens, 24), normal(3, 24), normal(1, 3), slot


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(backend, packed) -> None:
    block = Block(packed)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=backend)
    with torch.inference_mode():
        for tokens in (4, 9):
            arguments = block_arguments(tokens)
            torch.testing.assert_close(compiled(*arguments), block(*arguments))


def test_gradients_go_through_a_compiled_block() -> None:
    block = Block(packed=False)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x, table, alpha, slot = block_arguments(5)
    found = []
    for function in (block, compiled):
        leaves = [t.clone().requires_grad_() for t in (x, table, alpha)]
        function(*leaves, slot).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for eager, traced in zip(*found, strict=True):
        assert eager.ne(0).any()
        torch.testing.assert_close(eager, traced)


def python_files_called(function: Callable[[], object]) -> set[str]:
    """Names of the files whose functions run."""
    files = set()
    sys.setprofile(lambda frame, event, argument: files.add(Path(frame.f_code.co_filename).name))
    try:
        function()
    finally:
        sys.setprofile(None)
    return files


def test_gradients_cost_nothing_in_inference_mode() -> None:
    arguments = op_arguments("svf_linear", torch.float32, panels)[0]

    def call() -> Tensor:
        return torch.ops.zweave.svf_linear.default(*arguments)

    assert "autograd.py" in python_files_called(call)
    with torch.inference_mode():
        assert "autograd.py" not in python_files_called(call)


def _with_quantised_factors(
    x, w, vt, u, delta, slot, bias, out_features: int, vt_scale: Tensor, u_scale: Tensor
) -> Tensor:
    kept = delta.shape[1]
    return svf_delta_linear_ref(
        x,
        w,
        Quantized(vt, vt_scale, (kept, x.shape[1]), FORMATS[vt.dtype], x.shape[1]),
        Quantized(u, u_scale, (out_features, kept), FORMATS[u.dtype], kept),
        delta,
        slot,
        bias,
    )


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("name", sorted(OPS - {"pack", "unpack", "paged_attention"}))
def test_a_gpu_agrees_with_the_cpu(name, dtype, tolerance) -> None:
    op = getattr(torch.ops.zweave, name).default
    for arguments in op_arguments(name, dtype, lambda weight: weight):
        if len(arguments) > 8 and dtype != torch.float32:
            continue  # tests/kernels/test_triton.py rounds between the products as the kernel does
        here = [a.detach().clone() if isinstance(a, Tensor) else a for a in arguments]
        there = [a.cuda() if isinstance(a, Tensor) else a for a in here]
        # Quantised factors: a CPU rounds the tokens too (docs/kernels/svf_delta_linear.md).
        wanted = _with_quantised_factors(*here) if len(here) > 8 else op(*here)
        for left, right in zip([wanted, *here], [op(*there), *there], strict=True):
            if isinstance(left, Tensor):
                torch.testing.assert_close(right.cpu(), left, **tolerance(dtype))


@pytest.mark.gpu
@DTYPES
def test_weights_packed_on_a_gpu_come_back(dtype) -> None:
    weight = normal(37, 21, dtype=dtype).cuda()
    packed = pack(weight)
    assert packed.data.data_ptr() != weight.data_ptr()
    assert torch.equal(unpack(packed), weight)
