import math

import numpy as np
import pytest
import torch

from zweave import Sampling
from zweave.engine.sampler import logprobs, sample_token

DRAWS = 4000


def frequencies(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    drawn = torch.tensor([sample_token(logits, sampling, seed=3, index=i) for i in range(DRAWS)])
    return torch.bincount(drawn, minlength=logits.numel()) / DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_distribution(temperature: float) -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0)) * 2
    wanted = torch.softmax(logits / temperature, dim=-1)
    # Three and a half standard errors of the most uncertain frequency.
    assert (
        frequencies(logits, Sampling(temperature=temperature)) - wanted
    ).abs().max() < 3.5 * 0.5 / DRAWS**0.5


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1, top_k=2), {1, 3}),
        (Sampling(temperature=1, top_k=1), {3}),
        (Sampling(temperature=1, top_p=0.75), {1, 3}),
        (Sampling(temperature=1, top_p=1e-9), {3}),
        (Sampling(temperature=1, min_p=0.5), {1, 3}),
        (Sampling(temperature=1, min_p=1.0), {3}),
        (Sampling(temperature=1, top_k=3, top_p=0.99, min_p=0.1), {1, 3, 0}),
    ],
    ids=str,
)
def test_filters_keep_exactly_the_right_tokens(sampling: Sampling, kept: set[int]) -> None:
    probabilities = torch.tensor([0.15, 0.3, 0.05, 0.5])
    drawn = frequencies(probabilities.log(), sampling)
    assert set(drawn.nonzero().flatten().tolist()) == kept
    ratio = drawn[list(kept)] / probabilities[list(kept)]
    assert (ratio / ratio.mean() - 1).abs().max() < 0.15


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1, top_k=6),
        Sampling(temperature=1, top_p=0.8),
        Sampling(temperature=1, min_p=0.2),
    ],
    ids=str,
)
def test_a_draw_walks_the_kept_tokens_in_the_order_of_their_ids(sampling: Sampling) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(4))
    uniform = [np.random.Generator(np.random.Philox(key=[9, i])).random() for i in range(300)]
    drawn = [sample_token(logits, sampling, 9, i) for i in range(300)]
    by_uniform = [token for _, token in sorted(zip(uniform, drawn, strict=True))]
    assert by_uniform == sorted(drawn) and 2 < len(set(drawn)) < 12


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(temperature=1)
    draws = [sample_token(logits, sampling, 5, i) for i in range(20)]
    assert draws == [sample_token(logits, sampling, 5, i) for i in range(20)]
    assert draws != [sample_token(logits, sampling, 6, i) for i in range(20)]
    assert len(set(draws)) > 10


def test_logprobs_are_those_of_the_untempered_model() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    entry = logprobs(logits, 0, 2)
    total = math.log(sum(math.exp(x) for x in (1, 3, 2)))
    assert entry.token_id == 0
    assert entry.logprob == pytest.approx(1 - total)
    assert list(entry.top) == [1, 2]
    assert entry.top[1] == pytest.approx(3 - total)


def test_no_logprobs_but_the_chosen_one() -> None:
    assert logprobs(torch.tensor([1.0, 3.0]), 1, 0).top == {}


def test_large_seeds_differ() -> None:
    logits = torch.zeros(1 << 16)
    draws = [sample_token(logits, Sampling(temperature=1), seed, 0) for seed in (2**63, 2**63 + 1, 2**64 - 1)]
    assert len(set(draws)) == 3


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(2))
    assert sample_token(logits, Sampling(temperature=1e-310), 1, 0) == int(logits.argmax())


def test_more_logprobs_than_tokens() -> None:
    assert len(logprobs(torch.zeros(3), 0, 50).top) == 3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=3.0, top_p=0.97),
        Sampling(temperature=1.0, top_k=40),
        Sampling(temperature=1.0, top_k=300, top_p=0.8, min_p=0.01),
    ],
    ids=str,
)
@pytest.mark.parametrize("ties", [False, True])
def test_a_large_vocabulary_is_cut_as_by_a_whole_sort(sampling: Sampling, ties: bool) -> None:
    logits = torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    if ties:
        logits = (logits * 4).round() / 4
    scores, order = (logits.double() / sampling.temperature).sort(descending=True, stable=True)
    weights = scores[: sampling.top_k or None].softmax(0)
    weights = weights * (weights.cumsum(0) - weights < sampling.top_p)
    weights = weights * (weights >= sampling.min_p * weights.max())
    allowed = set(order[: len(weights)][weights > 0].tolist())
    drawn = {sample_token(logits, sampling, 1, index) for index in range(300)}
    assert drawn <= allowed and len(drawn) > 5
