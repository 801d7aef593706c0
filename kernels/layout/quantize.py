"""Matrices in a byte or half a byte a weight, with float32 scales.

    weight[m, n] ~ scale[m, n // group] * q[m, n]

    format   data                                   q                         default group
    int8     int8 [M, N]                            -127 .. 127               the whole row
    int4     uint8 [M, ceil(N / 2)]                 -7 .. 7                   64 inputs
    fp8      float8_e4m3fn [M, N]                   -448 .. 448, 3 bits kept  the whole row

scale [M, ceil(N / group)]. Symmetric: zero stays zero, and nothing is added when a product is undone.
A byte of int4 holds the even input in its low nibble and the odd one in its high nibble, each as q + 8, so that
an unsigned shift and one subtraction bring it back; the padding of an odd N is a zero. The factors of a delta
stand this; whole weights do not stand int8 with one scale a row.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Format: TypeAlias = Literal["int8", "int4", "fp8"]
LIMITS: dict[Format, float] = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
STORAGE: dict[Format, torch.dtype] = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.float8_e4m3fn}
INT4_OFFSET = 8


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix [out_features, in_features] in a low precision format.

    data: see the module's docstring; contiguous.
    scale: [out_features, ceil(in_features / group)], float32, contiguous.
    shape: (out_features, in_features) of the matrix that was quantised.
    format: "int8", "int4" or "fp8".
    group: in_features that share a scale; in_features or more: one scale a row.
    """

    data: Tensor
    scale: Tensor
    shape: tuple[int, int]
    format: Format
    group: int

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise ValueError(f"format must be one of {', '.join(get_args(Format))}, not {self.format!r}")
        if self.group < 1:
            raise ValueError(f"group must be 1 or more, not {self.group}")
        M, N = self.shape
        wanted = {
            "data": (self.data, (M, -(-N // 2) if self.format == "int4" else N), STORAGE[self.format]),
            "scale": (self.scale, (M, -(-N // self.group)), torch.float32),
        }
        for name, (tensor, shape, dtype) in wanted.items():
            if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
                raise ValueError(
                    f"{self.format} {name} of a {M} x {N} matrix must be {list(shape)} {dtype} and contiguous, "
                    f"not {list(tensor.shape)} {tensor.dtype}"
                )
        if self.data.device != self.scale.device:
            raise ValueError(f"data lie on {self.data.device}, scales on {self.scale.device}")

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def scale_a_row(self) -> bool:
        """Whether every row has a single scale, which a product can apply once, to its result."""
        return self.group >= self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the values and their scales."""
        return self.data.nbytes + self.scale.nbytes

    def to(self, device: torch.device | str) -> "Quantized":
        """The same matrix on another device."""
        return Quantized(self.data.to(device), self.scale.to(device), self.shape, self.format, self.group)


def quantize(weight: Tensor, format: Format, group: int | None = None) -> Quantized:
    """Rounds a matrix to the nearest values of a format.

    weight: [out_features, in_features], any float dtype, finite.
    group: in_features that share a scale; None: 64 for int4, the whole row otherwise.
    The largest magnitude of a group maps to the format's limit. A weight is off by at most half of its scale in
    the integer formats, and in fp8 by the larger of 1/16 of itself and 2**-10 of its scale.
    Raises: ValueError on a wrong shape, format or group, or weights that are not finite.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"quantize wants a float matrix, got {list(weight.shape)} {weight.dtype}")
    if format not in LIMITS:
        raise ValueError(f"format must be one of {', '.join(LIMITS)}, not {format!r}")
    M, N = weight.shape
    if group is None:
        group = 64 if format == "int4" else max(N, 1)
    if group < 1:
        raise ValueError(f"group must be 1 or more, not {group}")
    group = min(group, max(N, 1))
    values, groups = weight.float(), -(-N // group)
    grouped = torch.nn.functional.pad(values, (0, groups * group - N)).view(M, groups, group)
    scale = grouped.abs().amax(-1) / LIMITS[format] if N else values.new_empty(M, 0)
    # The largest of a group is not finite if one of them is not.
    if not scale.isfinite().all():
        raise ValueError("quantize: some weights are not finite")
    # A group of zeros has no scale; any will do.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    # The quotient may pass the limit by a rounding.
    q = (grouped / scale[:, :, None]).clamp(-LIMITS[format], LIMITS[format]).view(M, groups * group)[:, :N]
    return Quantized(_encode(q, format), scale.contiguous(), (M, N), format, group)


def of_codes(q: Tensor, scale: Tensor, format: Format, group: int) -> Quantized:
    """The matrix scale[m, n // group] * q[m, n] of values that were chosen elsewhere.

    q: [out_features, in_features], whole numbers within the format's limits (fp8: values that it has), any float dtype.
    scale: [out_features, ceil(in_features / group)].
    """
    M, N = q.shape
    return Quantized(
        _encode(q.float(), format), scale.float().contiguous(), (M, N), format, min(group, max(N, 1))
    )


def codes_of(weight: Quantized) -> Tensor:
    """q [out_features, in_features] of a matrix in int8 or int4, as int8."""
    if weight.format == "fp8":
        raise ValueError("codes_of: the values of fp8 are no whole numbers")
    return _decode(weight.data, weight.shape[1], weight.format).to(torch.int8)


def dequantize(weight: Quantized) -> Tensor:
    """The matrix [out_features, in_features] that the values and scales stand for, float32."""
    N = weight.shape[1]
    scale = weight.scale.repeat_interleave(min(weight.group, N), dim=1)
    return _decode(weight.data, N, weight.format) * scale[:, :N]


def round_activations(x: Tensor, block: int = 64) -> Tensor:
    """The values that a CPU product with integer weights takes for its inputs, float32.

    Semantics: x[t, b] ~ scale[t, b] * q[t, b], scale = max |x[t, b]| / 127 for every block b of 64 inputs, q whole.
    x: [tokens, in_features], bf16 or float32. A block that holds NaN or infinity becomes NaN, one below 1e-30 zero.
    """
    T, N = x.shape
    blocks = -(-N // block)
    values = torch.nn.functional.pad(x.float(), (0, blocks * block - N)).view(T, blocks, block)
    peak = values.abs().amax(-1, keepdim=True) if N else values.new_empty(T, 0, 1)
    rounded = (values * (127 / peak)).round() * (peak / 127)
    rounded = torch.where(peak < 1e-30, 0.0, torch.where(peak.isfinite(), rounded, torch.nan))
    return rounded.view(T, blocks * block)[:, :N]


def _encode(q: Tensor, format: Format) -> Tensor:
    if format == "fp8":
        return q.to(torch.float8_e4m3fn).contiguous()
    if format == "int8":
        return q.round().to(torch.int8).contiguous()
    nibbles = torch.nn.functional.pad(q.round() + INT4_OFFSET, (0, q.shape[1] % 2), value=INT4_OFFSET)
    low, high = nibbles.to(torch.uint8).view(q.shape[0], (q.shape[1] + 1) // 2, 2).unbind(-1)
    return low | (high << 4)


def _decode(data: Tensor, in_features: int, format: Format) -> Tensor:
    if format != "int4":
        return data.float()
    nibbles = torch.stack([data & 15, data >> 4], dim=-1).view(data.shape[0], 2 * data.shape[1])
    return nibbles[:, :in_features].float() - INT4_OFFSET
