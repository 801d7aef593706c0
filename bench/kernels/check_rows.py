"""Checks of the kernels beside the products: norms, gates, scales, components of LoRAs, mixtures, sampling."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from zweave.kernels import PAGE, ComponentMemory, mix, mix_ref

from .check_case import CheckSource, KernelCheck

EPS = 1e-5


def row_checks(source: CheckSource) -> Iterator[KernelCheck]:
    tokens, width = source.between(1, 200), source.between(8, 5000)
    for make in (_add_rms_norm, _silu_mul, _scale_by_slot, _add_components, _mix, _sample):
        name = make.__name__.removeprefix("_")
        result, truth = make(source, tokens, width)
        yield KernelCheck(name, f"{tokens} x {width}", result, truth, exact=make is _sample)


Made = tuple[Callable[[], Tensor], Tensor]


def _add_rms_norm(source: CheckSource, tokens: int, width: int) -> Made:
    x, residual = source.normal(tokens, width), source.normal(tokens, width, dtype=torch.float32)
    weight = source.normal(width)
    total = x.double() + residual.double()

    def result() -> Tensor:
        added = residual.clone()
        y = source.backend.ops.add_rms_norm(x, added, weight, EPS)
        return torch.cat([y.float(), added], 1)

    norm = total * torch.rsqrt(total.square().mean(1, keepdim=True) + EPS) * weight.double()
    return result, torch.cat([norm, total], 1)


def _silu_mul(source: CheckSource, tokens: int, width: int) -> Made:
    gate, up = source.normal(tokens, width), source.normal(tokens, width)
    return partial(source.backend.ops.silu_mul, gate, up), F.silu(gate.double()) * up.double()


def _scale_by_slot(source: CheckSource, tokens: int, width: int) -> Made:
    h, table = source.normal(tokens, width), source.normal(3, width, dtype=torch.float32)
    slot = source.whole(0, 3, tokens)

    def result() -> Tensor:
        scaled = h.clone()
        source.backend.ops.scale_by_slot(scaled, table, slot, zero_base=True)
        return scaled

    truth = h.double() * table[slot.long()].double()
    return result, torch.where((slot != 0)[:, None], truth, 0)


def _add_components(source: CheckSource, tokens: int, width: int) -> Made:
    """Two linears, slots of two pages of which they share one; slot 0 has none."""
    x, outputs = source.normal(tokens, width), (source.between(8, 300), 24)
    scale = torch.zeros(2, 3, 4 * PAGE, device=source.device)
    own = torch.zeros(3, 4 * PAGE, dtype=torch.bool, device=source.device)
    for row, page in ((1, 0), (1, 3), (2, 2), (2, 3)):
        own[row, page * PAGE : (page + 1) * PAGE] = True
    scale[:, own] = source.normal(2, int(own.sum()), dtype=torch.float32)
    absent = torch.empty(0)
    shapes = [(M, width) for M in outputs]
    memory = ComponentMemory.zeros(shapes, 4, x.dtype, scale, absent, torch.empty(2, 0), in_panels=False)
    parts = memory.linears
    for part in parts:
        part.vt.copy_(source.normal(*part.vt.shape) / width**0.5)
        part.u.copy_(source.normal(*part.u.shape) / 8)
    slots, base = source.whole(0, 3, tokens), source.normal(tokens, sum(outputs))
    pages = torch.tensor([3, 0, 2, 3, -1], dtype=torch.int32, device=source.device)

    def result() -> Tensor:
        y = base.clone()
        source.backend.ops.add_components(y, x, parts, slots, pages)
        return y

    added = [
        ((x.double() @ part.vt.double().flatten(0, 1).T) * part.scale[slots.long()].double())
        @ part.u.double().flatten(0, 1)
        for part in parts
    ]
    return result, base.double() + torch.cat(added, 1)


def _mix(source: CheckSource, tokens: int, width: int) -> Made:
    table, alpha = (source.normal(*size, dtype=torch.float32) for size in ((9, width), (4, 9)))
    op = mix if table.is_cuda else mix_ref
    return partial(op, table, alpha), alpha.double() @ table.double()


def _sample(source: CheckSource, tokens: int, width: int) -> Made:
    """The likeliest token of each row, and whether its logits are finite."""
    logits = source.normal(tokens, width, dtype=torch.float32)
    logits[0, width // 2] = float("nan")
    zeros, ones = torch.zeros(tokens, device=source.device), torch.ones(tokens, device=source.device)
    seed = torch.zeros(tokens, dtype=torch.int64, device=source.device)

    def result() -> Tensor:
        token, finite = source.backend.ops.sample(logits, zeros, zeros.int(), ones, zeros, seed, seed)
        return torch.stack([token, finite.long()], 1)

    truth = torch.stack([logits.nan_to_num(-1e9).argmax(1), torch.ones_like(seed)], 1)
    truth[0] = 0
    return result, truth.double()
