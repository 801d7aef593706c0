"""Draws next tokens from logits, each request by itself: its draw never depends on its neighbours."""

import numpy as np
import torch
from torch import Tensor

from zweave.request import Sampling, TokenLogprob


def draw(logits: Tensor, sampling: Sampling, seed: int, index: int) -> int:
    """Samples a request's index-th token. logits: [vocabulary], float32.

    Temperature first, then top-k, top-p and min-p, all judged on the tempered distribution. The random
    number is a pure function of (seed, index), so a request that was preempted draws the same again.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    # The largest score becomes 0 first, so that a tiny temperature overflows to -inf, not to NaN.
    scores = (logits - logits.max()).double() / sampling.temperature
    ids = None
    if sampling.top_k or sampling.top_p < 1:
        scores, ids = scores.sort(descending=True, stable=True)
    if sampling.top_k:
        scores = scores[: sampling.top_k]
    weights = torch.softmax(scores, dim=-1)
    if sampling.top_p < 1:
        weights = weights * (weights.cumsum(0) - weights < sampling.top_p)
    if sampling.min_p > 0:
        weights = weights * (weights >= sampling.min_p * weights.max())
    cumulative = weights.cumsum(0)
    uniform = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64))).random()
    choice = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    # Rounding may put the draw past the last token that was kept.
    choice = min(choice, int(weights.nonzero()[-1]))
    return choice if ids is None else int(ids[choice])


def logprobs(logits: Tensor, token_id: int, count: int) -> TokenLogprob:
    """Log-probabilities of a token and of the `count` most likely ones. logits: [vocabulary], float32."""
    values = torch.log_softmax(logits.double(), dim=-1)
    best, ids = values.topk(min(count, values.numel()))
    return TokenLogprob(
        token_id, float(values[token_id]), dict(zip(ids.tolist(), best.tolist(), strict=True))
    )
