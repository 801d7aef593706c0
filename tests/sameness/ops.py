"""The ops on random inputs: awkward shapes, both dtypes, plain and packed weights."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from digests import of_tensors
from models import randn
from torch import Tensor

from zweave import kernels

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Tokens, out_features, in_features, components.
SHAPES = [(1, 16, 32, 16), (5, 63, 199, 50), (37, 130, 66, 66), (3, 576, 1536, 72)]


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, dtype in DTYPES.items():
        for shape in SHAPES:
            yield f"products/{name}/{'x'.join(map(str, shape))}", partial(products, dtype, shape)
        yield f"attention/{name}", partial(attention, dtype)
        yield f"norms/{name}", partial(norms, dtype)
    yield "quantize", quantize
    yield "mix, greedy", mix_and_greedy


def products(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> dict[str, str]:
    """Every linear; svf_delta_linear with factors of both integer formats too."""
    T, M, N, K = shape
    x, w, bias = (tensor.to(dtype) for tensor in (randn("x", T, N), randn("w", M, N) / 8, randn("bias", M)))
    vt, u = (tensor.to(dtype) / 8 for tensor in (randn("vt", K, N), randn("u", M, K)))
    scale = randn("scale", 4, K)
    scale[0] = 0
    slot = torch.arange(T, dtype=torch.int32) * 3 % 4
    found = {}
    for name, form in {"plain": lambda weight: weight, "packed": kernels.pack}.items():
        found |= {
            f"linear, {name}": kernels.linear(x, form(w), bias),
            f"linear to float32, {name}": kernels.linear(x, form(w), out_dtype=torch.float32),
            f"svf_linear, {name}": kernels.svf_linear(x, form(vt), form(u), scale, slot, bias),
            f"svf_delta_linear, {name}": kernels.svf_delta_linear(
                x, form(w), form(vt), form(u), scale, slot, bias
            ),
        }
    for format in ("int8", "int4"):
        for group in (None, 64, 128):
            integers = [kernels.pack(kernels.quantize(factor, format, group)) for factor in (vt, u)]
            y = kernels.svf_delta_linear(x, kernels.pack(w), *integers, scale, slot, bias)
            found[f"svf_delta_linear, {format} by {group}"] = y
    found["pack"] = kernels.pack(w).data
    found["unpack"] = kernels.unpack(kernels.pack(w))
    return {name: of_tensors(tensor) for name, tensor in found.items()}


def attention(dtype: torch.dtype) -> dict[str, str]:
    """Three sequences in scattered blocks: a prompt, a chunk amid a prompt and a token."""
    found = {}
    for heads, kv_heads, head_size, block in ((4, 2, 16, 4), (9, 3, 64, 16), (2, 1, 22, 6)):
        cache = kernels.empty_kv(24, kv_heads, block, head_size, dtype, torch.device("cpu"))
        for part in cache:
            part.zero_()
        table = torch.randperm(24, generator=torch.Generator().manual_seed(0)).view(3, 8).int()
        # Of each sequence what is computed before, and what then.
        lengths = [(0, 3 * block + 1), (block + 2, 4 * block), (5 * block, 5 * block + 1)]
        for window in (0, 5):
            for step in (0, 1):
                spans = [(0, start) if step == 0 else (start, end) for start, end in lengths]
                sequence = torch.cat([torch.full((e - s,), i) for i, (s, e) in enumerate(spans)]).int()
                position = torch.cat([torch.arange(s, e) for s, e in spans]).int()
                T = len(position)
                q, k, v = (
                    randn(f"{name} {step}", T, n, head_size).to(dtype)
                    for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
                )
                index = table[sequence.long(), position.long() // block].long() * block + position % block
                kernels.write_kv(k, v, *cache, index)
                y = kernels.paged_attention(q, *cache, table, sequence, position, head_size**-0.5, window)
                found[f"{heads} heads of {head_size}, window {window}, step {step}"] = of_tensors(y, *cache)
    return found


def norms(dtype: torch.dtype) -> dict[str, str]:
    """Norms, rotary positions and the gate."""
    found: dict[str, Any] = {}
    for T, N in ((1, 32), (7, 199), (40, 576)):
        x, weight, residual = (
            randn("x", T, N).to(dtype),
            randn("weight", N).to(dtype),
            randn("residual", T, N),
        )
        found[f"rms_norm {T} {N}"] = kernels.rms_norm(x, weight, 1e-5)
        found[f"add_rms_norm {T} {N}"] = (kernels.add_rms_norm(x, residual, weight, 1e-5), residual)
        found[f"silu_mul {T} {N}"] = kernels.silu_mul(x, randn("up", T, N).to(dtype))
        q, k = randn("q", T, 3, 22).to(dtype), randn("k", T, 1, 22).to(dtype)
        angles = randn("angles", 50, 11)
        kernels.rope(q, k, angles.cos(), angles.sin(), torch.arange(T, dtype=torch.int32) * 7 % 50)
        found[f"rope {T}"] = (q, k)
    return {name: _digest(value) for name, value in found.items()}


def quantize() -> dict[str, str]:
    """To each format and back, packed and unpacked."""
    found: dict[str, Any] = {}
    weight = randn("weight", 45, 198)
    for format in ("int8", "int4", "fp8"):
        for group in (None, 64, 7):
            quantized = kernels.quantize(weight, format, group)
            data = quantized.data.view(torch.uint8)
            found[f"{format} by {group}"] = (data, quantized.scale, kernels.dequantize(quantized))
    for format in ("int8", "int4"):
        packed = kernels.pack(kernels.quantize(weight, format, 64))
        found[f"packed {format}"] = (packed.data, packed.scale, kernels.unpack(packed))
    u, vt = kernels.gather_components(weight, weight.T.contiguous(), torch.tensor([3, 0, 40]))
    found["gather_components"] = (u, vt)
    return {name: _digest(value) for name, value in found.items()}


def mix_and_greedy() -> dict[str, str]:
    logits = randn("logits", 6, 1001)
    logits[1, 5] = logits[1, 900] = 9
    logits[2, 3] = float("nan")
    logits[3, 4] = float("inf")
    mixed = kernels.mix(randn("table", 5, 199), randn("alpha", 4, 5))
    return {"mix": _digest(mixed), "greedy": _digest(kernels.greedy(logits))}


def _digest(value: Tensor | tuple[Tensor, ...]) -> str:
    return of_tensors(*(value if isinstance(value, tuple) else (value,)))
