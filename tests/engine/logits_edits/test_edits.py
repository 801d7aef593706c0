"""Each edit against an independent reference, on random logits and over whole answers."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from zweave import Engine, Request, Sampling, ZweaveError
from zweave.engine.logits_edits import edits_of

TinyEngine = Callable[..., Engine]
PROMPTS = ([3, 14, 15, 9, 26, 14], [5, 35, 8], [9, 7, 9, 32, 38, 46, 26, 4])


def penalised(logits: Tensor, prompt: Sequence[int], generated: Sequence[int], sampling: Sampling) -> Tensor:
    """The reference: transformers' processors, and the two penalties that it lacks token by token."""
    row = logits[None].clone()
    if sampling.logit_bias:
        row = SequenceBiasLogitsProcessor([[[t], b] for t, b in sampling.logit_bias.items()])(
            torch.tensor([[*prompt, *generated]]), row
        )
    row = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(
        torch.tensor([[*prompt, *generated]]), row
    )
    for token in set(generated):
        row[0, token] -= sampling.frequency_penalty * [*generated].count(token)
        row[0, token] -= sampling.presence_penalty
    return row[0]


SAMPLINGS = [
    Sampling(repetition_penalty=1.7),
    Sampling(repetition_penalty=0.6),
    Sampling(presence_penalty=1.5),
    Sampling(frequency_penalty=0.7),
    Sampling(frequency_penalty=-0.4, presence_penalty=-2),
    Sampling(logit_bias={7: 3.0, 40: -100.0, "12": 1.5}),
    Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={9: 2.5}),
]


def name_of(sampling: Sampling) -> str:
    changed = [f.name for f in fields(Sampling) if getattr(sampling, f.name) != f.default]
    return "-".join(changed)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=name_of)
def test_random_logits(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(0)
    for length in (0, 1, 20):
        logits = 3 * torch.randn(96, generator=generator)
        generated = torch.randint(0, 30, (length,), generator=generator).tolist()
        request = Request([1, 2, 3, 50, 3], sampling=sampling)
        given = logits.clone()
        for edit in edits_of(request, request.prompt, None):
            edit.edit(given, generated)
        torch.testing.assert_close(
            given, penalised(logits, request.prompt, generated, sampling), rtol=1e-6, atol=1e-6
        )
        assert not torch.equal(given, logits) or (length == 0 and sampling.repetition_penalty == 1)


def greedy_answer(engine: Engine, request: Request, prompt_logits: Callable[..., list[Tensor]]) -> list[int]:
    """Token after token from the plain logits, changed by the reference."""
    answer: list[int] = []
    while len(answer) < request.max_tokens:
        [logits] = prompt_logits(engine, [([*request.prompt, *answer], request.expert)])
        answer.append(int(penalised(logits[-1], request.prompt, answer, request.sampling).argmax()))
    return answer


def test_whole_answers(tiny_engine: TinyEngine, prompt_logits: Callable[..., list[Tensor]]) -> None:
    """Also with preemption in the middle, and by the steps of a GPU."""
    requests = [
        Request(PROMPTS[i % 3], expert=(None, "a")[i % 2], max_tokens=14, ignore_eos=True, sampling=sampling)
        for i, sampling in enumerate(SAMPLINGS)
    ]
    engine = tiny_engine()
    wanted = [greedy_answer(engine, request, prompt_logits) for request in requests]
    plain = engine.generate([replace(request, sampling=Sampling()) for request in requests])
    assert all(result.token_ids != tokens for result, tokens in zip(plain, wanted, strict=True))
    cramped = tiny_engine(kv_tokens=64)
    for one in (engine, cramped, tiny_engine(device="reference", kv_tokens=64)):
        assert [result.token_ids for result in one.generate(requests)] == wanted
    assert cramped.stats().preemptions > 0


def test_a_bias_of_no_token_is_refused(tiny_engine: TinyEngine) -> None:
    with pytest.raises(ZweaveError, match="token ids must be integers from 0 to 95"):
        tiny_engine().check(Request([1], sampling=Sampling(logit_bias={96: 1})))
