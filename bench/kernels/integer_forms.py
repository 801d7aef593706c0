"""Deltas with integer factors, for the linear bench: of the leading components and of all.

Only on request (`--providers`): their bounds differ from those of the other forms. The truth is the product of the
rounded factors; the delta is a tenth of y, as large as experts ever make it.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from zweave.kernels import dequantize, pack, quantize, svf_delta_linear
from zweave.kernels.layout.quantize import Format

from ..harness.harness import ERROR_LIMITS, Provider
from .linear_case import Operands
from .linear_forms import ProviderAt, make_provider

SIZE = 0.1
# The largest number of tokens at which the weights' bytes bind; above, integers multiply twice as fast as bf16.
STREAMED_TOKENS = 12


def integer_delta(o: Operands, name: str, format: Format, kept: int) -> ProviderAt:
    """W x + U (delta * (V^T x)) over the leading `kept` components of integer factors."""
    M, N = o.shape.M, o.shape.N
    vt, u = quantize(o.vt[:kept], format), quantize(o.u[:, :kept].contiguous(), format)
    weights = o.rotated(lambda: (pack(o.w), pack(vt), pack(u)), o.w.nbytes + vt.data.nbytes + u.data.nbytes)
    delta = torch.cat([torch.zeros(1, kept), SIZE * o.scale[:, :kept]])
    byte = vt.data.nbytes / (kept * N)

    def truth(T: int, slot: Tensor) -> Tensor:
        hidden = o.product(dequantize(vt), o.x[:T]) * delta[slot.long()]
        return o.dense_truth[:T] + o.product(dequantize(u), hidden)

    def at(T: int, E: int) -> Provider:
        x, slot = o.x[:T], o.slot(T, E, first=1)
        share = byte / 2 if T <= STREAMED_TOKENS else 0.5
        provider = make_provider(
            o, name, weights, lambda w: svf_delta_linear(x, w[0], w[1], w[2], delta, slot),
            lambda: truth(T, slot), elements=M * N, activations=M + N + 2 * kept,
            extra_bytes=byte * kept * (M + N) + 4 * E * kept, extra_flops=2.0 * T * kept * (M + N),
            T=T, E=E, K=kept, bound=1 + share * kept * (M + N) / (M * N),
        )  # fmt: skip
        # Activations are rounded to integers, whatever dtype they have.
        return replace(provider, limit=ERROR_LIMITS[torch.bfloat16])

    return at


INTEGER_FORMS: dict[str, Callable[[Operands], ProviderAt]] = {
    "delta int8": lambda o: integer_delta(o, "delta int8", "int8", o.kept),
    "delta int4": lambda o: integer_delta(o, "delta int4", "int4", o.kept),
    "full delta int8": lambda o: integer_delta(o, "full delta int8", "int8", o.shape.rank),
    "full delta int4": lambda o: integer_delta(o, "full delta int4", "int4", o.shape.rank),
}
