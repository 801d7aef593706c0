"""The next token of each row of logits, drawn as the row's request wishes.

    d[v]     = max over j of logits[j] - logits[v]         w[v] = exp(-d[v] / temperature)
    kept     = the top_k least d; of these the fewest least d whose w reach top_p of theirs; of these w[v] >= min_p
    id       = the first v with  sum of the kept w[0..v] > u * sum of the kept w

    logits [B, V]   parameters [B] each   ->   id [B], finite [B]

Equal logits are kept in the order of their ids; u is `uniform` of (seed, index). The sum runs in the order of the
ids, so that no row is sorted: what is kept is one threshold on d, and how many of the tokens on it. Parameters are
tensors: a captured graph replays with other values. Bytes: 4 B V for a greedy row, which is read once; a drawn row is
read again from cache, see docs/kernels/sample.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .triton.checks import check_device, check_tensor, on_device_of
from .triton.gemm_config import Device, device_of
from .triton.pdl import launch_options
from .triton.sample import _sample_kernel
from .uniform import uniform_ref

# Sums of integer weights stay within 63 bits.
MAX_VOCABULARY = 2**20


def sample_ref(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    index: Tensor,
) -> tuple[Tensor, Tensor]:
    """Semantics: as above, in float64 and by sorting. Arguments as in `sample_triton`."""
    vocabulary = logits.shape[-1]
    largest, greedy = logits.max(-1)
    finite = largest.isfinite() & ~logits.isnan().any(-1)
    # Where a hidden state became so large that its norm is 0, all logits are the same.
    finite &= (logits.min(-1).values < largest) | (vocabulary == 1)
    # Rows that are not drawn from go along with scores that do no harm.
    drawn = finite & (temperature > 0)
    scores = (logits - largest[:, None]).double().where(drawn[:, None], 0)
    scores /= temperature.double().where(drawn, 1)[:, None]

    ordered, order = scores.sort(descending=True, stable=True)
    count = top_k.where((top_k > 0) & (top_k < vocabulary), vocabulary)
    weights = ordered.exp() * (torch.arange(vocabulary, device=logits.device) < count[:, None])
    before = weights.cumsum(-1) - weights
    kept = (before < top_p.double()[:, None] * weights.sum(-1, keepdim=True)) | (top_p >= 1)[:, None]
    kept[:, 0] = True
    weights = weights * kept
    weights = weights * (weights >= min_p.double()[:, None])

    cumulative = torch.zeros_like(weights).scatter(-1, order, weights).cumsum(-1)
    point = uniform_ref(seed, index)[:, None] * cumulative[:, -1:]
    # Rounding may put the point past the last token that was kept, where the sum no longer grows.
    end = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    token = torch.searchsorted(cumulative, point, right=True).minimum(end)[:, 0]
    return token.where(drawn, greedy).where(finite, 0), finite


@dataclass(frozen=True, slots=True)
class SampleConfig:
    """Shape and resources of a program.

    block_v: logits of a tile.
    num_warps: warps of a program.
    """

    block_v: int
    num_warps: int


def sample_config(vocabulary: int, device: Device) -> SampleConfig:
    """Picks the tile: eight logits a thread, since the sums of a search stay in registers; four where eight spill."""
    if vocabulary <= 4096:
        return SampleConfig(1024, num_warps=4)
    return SampleConfig(2048 if device.capability[0] == 12 else 4096, num_warps=16)


def sample_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    index: Tensor,
) -> tuple[Tensor, Tensor]:
    """Launches on a CUDA device (or in Triton's interpreter, on CPU tensors), without waiting for it.

    logits: [rows, vocabulary], float32; rows may lie apart; -inf bans a token.
    temperature: [rows], float32; 0 takes the largest logit, the lowest id on a tie.
    top_k: [rows], int32, 0 keeps all. top_p: [rows], float32, 1 keeps all. min_p: [rows], float32, 0 keeps all.
    seed: [rows], int64, the bits of an unsigned number.
    index: [rows], int64 or int32: which of its request's tokens this is.
    Returns id [rows] int64 and finite [rows] bool: whether the largest logit is finite, none is NaN, and not all are
    the same; the id of a row that is not finite is 0.
    Raises: ValueError on a wrong shape, stride or dtype, NotImplementedError on a wrong device.
    """
    _check(logits, temperature, top_k, top_p, min_p, seed, index)
    B, V = logits.shape
    ids = torch.empty(B, dtype=torch.int64, device=logits.device)
    finite = torch.empty(B, dtype=torch.bool, device=logits.device)
    if B == 0:
        return ids, finite
    config = sample_config(V, device_of(logits.device.index))
    with on_device_of(logits):
        _sample_kernel[(B,)](
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            index,
            ids,
            finite,
            V,
            logits.stride(0),
            BLOCK_V=config.block_v,
            num_warps=config.num_warps,
            **launch_options(logits.device.index),
        )
    return ids, finite


def _check(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    index: Tensor,
) -> None:
    check_device("sample", logits)
    if logits.dim() != 2 or not 0 < logits.shape[1] <= MAX_VOCABULARY:
        raise ValueError(
            f"sample: logits must be a matrix of 1 to {MAX_VOCABULARY} columns, not {list(logits.shape)}"
        )
    check_tensor("sample", "logits", logits, tuple(logits.shape), torch.float32, logits)
    rows = (logits.shape[0],)
    for name, tensor in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p)):
        check_tensor("sample", name, tensor, rows, torch.float32, logits)
    check_tensor("sample", "top_k", top_k, rows, torch.int32, logits)
    check_tensor("sample", "seed", seed, rows, torch.int64, logits)
    index_dtype = torch.int32 if index.dtype == torch.int32 else torch.int64
    check_tensor("sample", "index", index, rows, index_dtype, logits)
