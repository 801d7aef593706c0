"""Samples next tokens from logits, each request by itself: a sample never depends on the rest of the batch."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..request import Sampling, TokenLogprob
from ..scheduler.chunk import Chunk
from .step import SampledToken


def sample(logits: Tensor, greedy_id: int, is_finite: bool, chunk: Chunk) -> SampledToken:
    """Samples the token after a chunk, with what the request wants to know of it.

    logits: [vocabulary], float32.
    greedy_id: the likeliest token.
    is_finite: whether all logits are finite; nothing is sampled if not.
    """
    if not (is_finite and _tells_tokens_apart(logits, greedy_id)):
        return SampledToken(greedy_id, is_finite=False)
    sequence, request, index = chunk.sequence, chunk.sequence.request, chunk.num_generated
    token_id, edited = greedy_id, logits
    if sequence.edits:
        edited = logits.clone()
        for edit in sequence.edits:
            edit.edit(edited, chunk.generated)
        token_id = int(edited.argmax())
        if not math.isfinite(edited[token_id]):
            return SampledToken(token_id, is_finite=False)
    if request.sampling.temperature > 0:
        token_id = sample_token(edited, request.sampling, sequence.seed, index)
    return SampledToken(
        token_id,
        is_finite,
        logprob=None if request.logprobs is None else logprobs(logits, token_id, request.logprobs),
        scores=scores(logits, request.score) if request.score and index == 0 else None,
    )


def _tells_tokens_apart(logits: Tensor, greedy_id: int) -> bool:
    """False if all logits are the same, as they are where a hidden state became so large that its norm is 0."""
    same = len(logits) > 1 and greedy_id == 0 and bool(logits[-1] == logits[0])
    return not same or not bool((logits == logits[0]).all())


def sample_token(logits: Tensor, sampling: Sampling, seed: int, index: int) -> int:
    """Samples a request's index-th token. logits: [vocabulary], float32.

    Temperature first, then top-k, top-p and min-p, all judged on the tempered distribution. The random
    number is a pure function of (seed, index), so a request that was preempted draws the same again. It picks
    from the cumulative sum of the kept tokens in the order of their ids, which a device has without sorting.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    # The largest score becomes 0 first, so that a tiny temperature overflows to -inf, not to NaN.
    scores = (logits - logits.max()).double() / sampling.temperature
    ids = None
    if sampling.top_k:
        scores, ids = _largest(scores, sampling.top_k)
    if sampling.top_p < 1:
        scores, ids = _nucleus(scores, ids, sampling.top_p)
    if ids is not None:
        ids, order = ids.sort()
        scores = scores[order]
    weights = torch.softmax(scores, dim=-1)
    if sampling.min_p > 0:
        weights = weights * (weights >= sampling.min_p * weights.max())
    cumulative = weights.cumsum(0)
    uniform = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64))).random()
    choice = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    # Rounding may put the sample past the last token that was kept.
    choice = min(choice, int(weights.nonzero()[-1]))
    return choice if ids is None else int(ids[choice])


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest scores in descending order and their ids; of equal scores the lowest id comes first."""
    least = scores.topk(min(count, scores.numel())).values[-1]
    ids = (scores >= least).nonzero().flatten()
    ordered, order = scores[ids].sort(descending=True, stable=True)
    return ordered[:count], ids[order[:count]]


def _nucleus(scores: Tensor, ids: Tensor | None, share: float) -> tuple[Tensor, Tensor]:
    """The fewest largest scores, in descending order, that reach a share of the probability, and their ids.

    ids: of `scores` if they are in descending order already, else None. Sorting a whole vocabulary takes milliseconds
    and the nucleus is mostly small, so the largest few are taken, and more until they hold the nucleus.
    """
    whole, count = scores.exp().sum(), scores.numel() if ids is not None else 256
    while True:
        head, order = (scores, ids) if ids is not None else _largest(scores, count)
        weights = head.exp() / whole
        kept = weights.cumsum(0) - weights < share
        if count >= scores.numel() or not kept[-1]:
            return head[kept], order[kept]
        count *= 8


def scores(logits: Tensor, token_ids: Sequence[int]) -> list[float]:
    """Log-probabilities of given tokens. logits: [vocabulary], float32."""
    values = torch.log_softmax(logits.double(), dim=-1)
    return [float(values[token_id]) for token_id in token_ids]


def logprobs(logits: Tensor, token_id: int, count: int) -> TokenLogprob:
    """Log-probabilities of a token and of the `count` most likely ones. logits: [vocabulary], float32."""
    values = torch.log_softmax(logits.double(), dim=-1)
    best, ids = values.topk(min(count, values.numel()))
    return TokenLogprob(
        token_id, float(values[token_id]), dict(zip(ids.tolist(), best.tolist(), strict=True))
    )
