"""Edits act on the logits that are sampled from, and on nothing else."""

from collections.abc import Callable, Sequence

import pytest
from torch import Tensor

from zweave import Engine, Request, Sampling

TinyEngine = Callable[..., Engine]
PROMPTS = [[3, 14, 15, 9, 26], [5, 35, 8], [9, 7, 9, 32, 38, 46, 26, 4]]


class NeverTwice:
    """Excludes the tokens that were generated, by a state that must not be ahead of them or behind."""

    def __init__(self) -> None:
        self._seen: list[int] = []

    def edit(self, logits: Tensor, generated: Sequence[int]) -> None:
        assert [*generated[: len(self._seen)]] == self._seen and len(generated) - len(self._seen) <= 1
        self._seen = [*generated]
        logits[self._seen] = float("-inf")


class NoneAtAll:
    def edit(self, logits: Tensor, generated: Sequence[int]) -> None:
        logits.fill_(float("-inf"))


@pytest.fixture
def edit_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Gives odd requests an edit of some kind."""

    def patch(kind: type) -> None:
        monkeypatch.setattr(
            "zweave.engine.input_processor.edits_of", lambda r, *_: (kind(),) if r.max_tokens % 2 else ()
        )

    return patch


def requests(temperature: float = 0.0) -> list[Request]:
    return [
        Request(
            prompt,
            expert=expert,
            max_tokens=max_tokens,
            ignore_eos=True,
            logprobs=96,
            sampling=Sampling(temperature=temperature, seed=max_tokens),
        )
        for prompt, expert in zip(PROMPTS, (None, "a", {"a": 0.5, "b": 0.5}), strict=True)
        for max_tokens in (16, 17)
    ]


def test_the_likeliest_token_that_is_left_is_taken(
    tiny_engine: TinyEngine, edit_with: Callable[[type], None]
) -> None:
    plain = tiny_engine().generate(requests())
    edit_with(NeverTwice)
    given = tiny_engine().generate(requests())
    assert given[::2] == plain[::2]
    for one, other in zip(plain[1::2], given[1::2], strict=True):
        for index, entry in enumerate(other.logprobs):
            left = [token for token in entry.top if token not in other.token_ids[:index]]
            assert other.token_ids[index] == max(left, key=lambda token: entry.top[token])
            assert entry.logprob == entry.top[entry.token_id]
        assert one.token_ids != other.token_ids
        # Log-probabilities are the model's own: the first token's are not touched.
        assert one.logprobs[0] == other.logprobs[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_preemption_and_the_steps_of_a_gpu_change_nothing(
    temperature: float, tiny_engine: TinyEngine, edit_with: Callable[[type], None]
) -> None:
    edit_with(NeverTwice)
    wanted = tiny_engine().generate(requests(temperature))
    assert all(len({*result.token_ids}) == 17 for result in wanted[1::2])
    cramped = tiny_engine(kv_tokens=60)
    assert cramped.generate(requests(temperature)) == wanted and cramped.stats().preemptions > 0
    given = tiny_engine(device="reference", kv_tokens=60).generate(requests(temperature))
    assert [result.token_ids for result in given] == [result.token_ids for result in wanted]


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_no_token_left_is_an_error_of_that_request_alone(
    device: str, tiny_engine: TinyEngine, edit_with: Callable[[type], None]
) -> None:
    edit_with(NoneAtAll)
    results = tiny_engine(device=device).generate(requests())
    assert [result.finish_reason for result in results] == ["length", "error"] * 3
    assert all("excludes every token" in result.error for result in results[1::2])
