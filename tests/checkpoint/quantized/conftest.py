"""Tiny quantised checkpoints, packed value by value as the formats' descriptions say."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from zweave.checkpoint import ModelConfig

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _word(integers, bits):
    value = sum(int(integer) << (bits * place) for place, integer in enumerate(integers)) & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def pack_columns(matrix, bits):
    """int32 [rows, columns / count] of integers [rows, columns]."""
    count = 32 // bits
    words = [
        [_word(row[start : start + count], bits) for start in range(0, len(row), count)] for row in matrix
    ]
    return torch.tensor(words, dtype=torch.int32)


def awq_parts(rng, outputs, inputs, group, scale_dtype=torch.float16):
    """Parts, and W [outputs, inputs] in float64, of a random matrix."""
    groups = inputs // group
    q = rng.integers(0, 16, (inputs, outputs))
    zeros = rng.integers(0, 16, (groups, outputs))
    scales = torch.tensor(rng.uniform(0.004, 0.05, (groups, outputs))).to(scale_dtype)
    weight = np.empty((outputs, inputs))
    for n in range(inputs):
        for m in range(outputs):
            weight[m, n] = (q[n, m] - zeros[n // group, m]) * scales[n // group, m].item()

    def interleave(matrix):
        return [[row[start + o] for start in range(0, outputs, 8) for o in AWQ_ORDER] for row in matrix]

    return {
        "qweight": pack_columns(interleave(q), 4),
        "qzeros": pack_columns(interleave(zeros), 4),
        "scales": scales,
    }, weight


def gptq_parts(rng, outputs, inputs, group, bits=4, version="gptq", act_order=False):
    """The same for GPTQ; a v1 checkpoint holds words of zeros from which a word of ones was subtracted."""
    groups, top = -(-inputs // group), 1 << bits
    q = rng.integers(0, top, (inputs, outputs))
    zeros = rng.integers(0, top, (groups, outputs))
    scales = torch.tensor(rng.uniform(0.004, 0.05, (groups, outputs)) * 16 / top).half()
    index = np.arange(inputs) // group
    if act_order:
        index = rng.permutation(index)
    weight = np.empty((outputs, inputs))
    for n in range(inputs):
        for m in range(outputs):
            weight[m, n] = (q[n, m] - zeros[index[n], m]) * scales[index[n], m].item()
    qzeros = pack_columns(zeros, bits)
    if version == "gptq":
        ones = sum(1 << place for place in range(0, 32, bits))
        wrapped = [[_word([(word & 0xFFFFFFFF) - ones], 32) for word in row] for row in qzeros.tolist()]
        qzeros = torch.tensor(wrapped, dtype=torch.int32)
    return {
        "qweight": pack_columns(q.T, bits).T.contiguous(),
        "qzeros": qzeros,
        "scales": scales,
        "g_idx": torch.tensor(index, dtype=torch.int32),
    }, weight


def fp8_value(code):
    """e4m3 without infinities: a sign, four bits of exponent with bias 7, three of mantissa."""
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -magnitude if code & 128 else magnitude


def fp8_parts(rng, outputs, inputs, rows, columns, name="weight_scale", scale_dtype=torch.float32):
    """The same for fp8 with a scale for every block of rows x columns."""
    codes = rng.integers(0, 256, (outputs, inputs))
    codes[(codes & 127) == 127] = 0  # NaN
    grid = -(-outputs // rows), -(-inputs // columns)
    scales = torch.tensor(rng.uniform(0.0002, 0.002, grid)).to(scale_dtype)
    weight = np.empty((outputs, inputs))
    for m in range(outputs):
        for n in range(inputs):
            weight[m, n] = fp8_value(codes[m, n]) * scales[m // rows, n // columns].item()
    stored = torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn)
    return {"weight": stored, name: scales}, weight


def compressed_parts(
    rng, outputs, inputs, bits=4, group=None, per_output=True, zeros=False, act_order=False, packed=True
):
    """The same for compressed-tensors' integers, packed into words as unsigned numbers, or bytes."""
    half, width = 1 << (bits - 1), group or inputs
    rows, groups = outputs if per_output else 1, -(-inputs // width)
    q = rng.integers(-half, half, (outputs, inputs))
    zero = rng.integers(-half, half, (rows, groups)) if zeros else np.zeros((rows, groups), dtype=int)
    scales = torch.tensor(rng.uniform(0.004, 0.05, (rows, groups)) * 8 / half).half()
    index = np.arange(inputs) // width
    if act_order:
        index = rng.permutation(index)
    weight = np.empty((outputs, inputs))
    for m in range(outputs):
        for n in range(inputs):
            place = m if per_output else 0, index[n]
            weight[m, n] = (q[m, n] - zero[place]) * scales[place].item()
    parts = {"weight_scale": scales if per_output else scales.reshape(1)}
    if act_order:
        parts["weight_g_idx"] = torch.tensor(index, dtype=torch.int32)
    if packed:
        parts |= {
            "weight_packed": pack_columns(q + half, bits),
            "weight_shape": torch.tensor([outputs, inputs]),
        }
    else:
        parts["weight"] = torch.tensor(q, dtype=torch.int8)
    if zeros:
        words = pack_columns((zero + half).T, bits).T.contiguous()
        parts["weight_zero_point"] = words if packed else torch.tensor(zero, dtype=torch.int8)
    return parts, weight


@pytest.fixture(scope="session")
def formats():
    """The functions that make a matrix's parts, by format."""
    return {"awq": awq_parts, "gptq": gptq_parts, "fp8": fp8_parts, "compressed": compressed_parts}


@pytest.fixture(scope="session")
def quantized_model(tiny_model, tmp_path_factory):
    """`quantized_model(parts, quantization, dtype="float16")`: directories with matrices quantised and dequantised.

    parts: makes a matrix's parts and W from a generator, outputs and inputs.
    quantization: the quantization_config.
    dtype: that the config names and the other tensors have.
    """

    def make(parts, quantization, dtype="float16", architecture="llama"):
        folder = tmp_path_factory.mktemp("quantized")
        plain, quantized = folder / "plain", folder / "quantized"
        for directory in (plain, quantized):
            shutil.copytree(tiny_model(architecture, dtype=dtype), directory)
        tensors = load_file(plain / "model.safetensors")
        packed = dict(tensors)
        rng = np.random.default_rng(0)
        for module, shape in ModelConfig.from_directory(plain).adapted_shapes().items():
            found, weight = parts(rng, *shape)
            # As the format is defined: the product in float32, then rounded to the model's dtype.
            tensors[f"{module}.weight"] = torch.tensor(weight).float().to(DTYPES[dtype])
            del packed[f"{module}.weight"]
            packed |= {f"{module}.{part}": tensor for part, tensor in found.items()}
        save_file(tensors, plain / "model.safetensors")
        save_file(packed, quantized / "model.safetensors")
        raw = json.loads((quantized / "config.json").read_text())
        (quantized / "config.json").write_text(json.dumps(raw | {"quantization_config": quantization}))
        return quantized, plain

    return make


@pytest.fixture
def change_files():
    """`change_files(directory, change)`: lets `change` alter the tensors, name to tensor, in place."""

    def apply(directory, change):
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")
        return directory

    return apply
