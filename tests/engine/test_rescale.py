"""A mixture that is changed in an answer: new tokens under the new one, over the keys and values of the old one."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave import Dispatch, Engine, Request, Result, Sampling, ZweaveError
from zweave.dispatcher import ReadState
from zweave.experts import Expert
from zweave.experts.mixture import Mixture
from zweave.kv_cache.prefix_key import KEY_BYTES
from zweave.scheduler import Sequence

TinyEngine = Callable[..., Engine]
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 4]
MIXED = {"a": 0.5, "b": 0.5}
LENGTH = 18
# The mixtures by the number of tokens that are there when they are asked for.
CHANGES: list[dict[int, Any]] = [
    {0: "a", 5: "b"},
    {0: None, 3: MIXED, 9: "late"},
    {0: "late", 4: None, 10: "a"},
    {0: "b", 2: "a", 3: "b", 4: MIXED, 11: None},
]


@pytest.fixture(scope="module")
def reference(
    tiny_model: Callable[..., Path],
    tiny_engine: TinyEngine,
    random_expert: Callable[..., Expert],
    merged_model: Callable[..., Any],
) -> Callable[[Mapping[int, Any]], list[int]]:
    """The greedy answer of transformers' models in float64, one a mixture, that hand their keys and values on."""
    shapes = tiny_engine().model.config.adapted_shapes()
    experts = {name: random_expert(shapes, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    experts["late"] = random_expert(shapes, seed=3, first_layer=1)
    directory = tiny_model("llama", vocab_size=96)
    models: dict[str, Any] = {}

    def model_of(choice: Any) -> Any:
        if str(choice) not in models:
            models[str(choice)] = merged_model(directory, experts, choice).double()
        return models[str(choice)]

    @torch.inference_mode()
    def answer(changes: Mapping[int, Any]) -> list[int]:
        tokens, new, cache = [], PROMPT, None
        while len(tokens) < LENGTH:
            choice = changes[max(start for start in changes if start <= len(tokens))]
            output = model_of(choice)(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache, new = output.past_key_values, [int(output.logits[0, -1].argmax())]
            tokens += new
        return tokens

    return answer


def run(engine: Engine, changes: Mapping[int, Any], before: int = 0) -> tuple[Result, dict[int, Any]]:
    """Answers while the mixture changes, with requests before it that may preempt it.

    Returns the result, and the changes at the tokens that were there: on a GPU one more was on its way.
    """
    for index in range(before):
        engine.add(Request([*PROMPT[index:], 50 + index], expert="a", max_tokens=24, ignore_eos=True))
    request_id = engine.add(Request(PROMPT, expert=changes[0], max_tokens=LENGTH, ignore_eos=True))
    left, count, result = dict(changes), 0, None
    made = {0: left.pop(0)}
    while engine.has_work:
        if count in left:
            engine.rescale(request_id, left[count])
            made[count + (1 if engine.config.device == "reference" else 0)] = left.pop(count)
        for delta in engine.step():
            if delta.request_id == request_id:
                count += len(delta.token_ids)
                result = delta.result or result
    return result, made


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_equals_models_that_hand_their_keys_on(
    device: str, changes: dict, tiny_engine: TinyEngine, reference: Callable[..., list[int]]
) -> None:
    result, made = run(tiny_engine(device=device), changes)
    assert result.token_ids == reference(made)
    assert result.token_ids != reference({0: changes[0]})


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("slots", [1, 3])
def test_preemption_and_a_slot_that_is_waited_for_change_nothing(
    slots: int,
    prefix_cache: bool,
    changes: dict,
    tiny_engine: TinyEngine,
    reference: Callable[..., list[int]],
) -> None:
    engine = tiny_engine(kv_tokens=72, prefix_cache=prefix_cache, slots=slots)
    result, made = run(engine, changes, before=2)
    assert result.token_ids == reference(made)
    assert slots == 1 or engine.stats().preemptions > 0
    assert engine.stats().blocks_in_use == 0 and not engine.bank._ref_counts


def test_what_a_change_left_in_the_cache_is_taken_for_nothing_else(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    for changes in CHANGES:
        run(engine, changes)
    answer, _ = run(engine, CHANGES[0])
    for expert in (None, "a", "b", "late", MIXED):
        request = Request(
            [*PROMPT, *answer.token_ids], expert=expert, max_tokens=6, ignore_eos=True, logprobs=5
        )
        assert engine.generate(request) == tiny_engine().generate(request)
    # The same changes again find what they left, but for the last token.
    before = engine.stats().tokens_computed
    again, _ = run(engine, CHANGES[0])
    assert again.token_ids == answer.token_ids
    assert again.reused_tokens == len(PROMPT) - 1 and engine.stats().tokens_computed > before


def test_before_its_answer_a_request_is_as_if_it_had_named_the_mixture(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine(max_batch_tokens=6, max_sequences=4)
    [wanted] = tiny_engine().generate(
        Request(PROMPT, expert="b", max_tokens=6, logprobs=3, prompt_logprobs=1)
    )
    request = Request(PROMPT, expert="a", max_tokens=6, logprobs=3, prompt_logprobs=1)
    for steps in range(3):
        request_id, deltas = engine.add(request), []
        for _ in range(steps):
            deltas += engine.step()
        engine.rescale(request_id, "b")
        while engine.has_work:
            deltas += engine.step()
        result = deltas[-1].result
        assert (result.logprobs, result.prompt_logprobs) == (wanted.logprobs, wanted.prompt_logprobs)


class Never:
    """A dispatcher that has not chosen yet."""

    blocking = True

    def __init__(self) -> None:
        self.asked, self.may_choose = threading.Event(), threading.Event()

    def probe(self, prompt: object) -> ReadState:
        self.asked.set()
        self.may_choose.wait(10)
        return ReadState(1)

    def choose(self, prompt: object, evidence: object) -> Dispatch:
        return Dispatch()


def test_a_choice_that_is_awaited_is_overruled_for_all_answers(tiny_engine: TinyEngine) -> None:
    engine, dispatcher = tiny_engine(), Never()
    sampled = {"n": 2, "max_tokens": 5, "sampling": Sampling(temperature=1, seed=3)}
    request_id = engine.add(Request(PROMPT, expert="auto", dispatcher=dispatcher, **sampled))
    engine.step()
    assert dispatcher.asked.wait(10)
    engine.rescale(request_id, "a")
    results = {}
    while engine.has_work:
        results |= {delta.sample: delta.result for delta in engine.step() if delta.result is not None}
    dispatcher.may_choose.set()
    [wanted] = engine.generate(Request(PROMPT, expert="a", **sampled))
    assert [results[sample].token_ids for sample in (0, 1)] == [one.token_ids for one in wanted.samples]


def test_another_thread_may_ask(tiny_engine: TinyEngine, reference: Callable[..., list[int]]) -> None:
    engine = tiny_engine()
    stream, tokens = engine.stream(Request(PROMPT, expert="a", max_tokens=LENGTH, ignore_eos=True)), []
    for delta in stream:
        tokens += delta.token_ids
        if len(tokens) == 5:
            thread = threading.Thread(target=engine.rescale, args=(delta.request_id, "b"))
            thread.start()
            thread.join()
    assert tokens == reference({0: "a", 5: "b"})


def test_what_is_no_mixture_is_refused_and_unknown_requests_are_ignored(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    for choice, message in (("auto", "not 'auto'"), ("nobody", "there is no expert 'nobody'")):
        with pytest.raises(ZweaveError, match=message):
            engine.rescale(0, choice)
    engine.rescale(999, "a")
    assert engine.generate(Request(PROMPT, max_tokens=2, ignore_eos=True))[0].finish_reason == "length"


def test_an_expert_that_is_gone_ends_the_request_with_an_error(
    tiny_engine: TinyEngine, random_expert: Callable[..., Expert], tmp_path: Path
) -> None:
    engine = tiny_engine()
    random_expert(engine.model.config.adapted_shapes(), seed=9).save(tmp_path / "gone.safetensors")
    engine.load_expert("gone", tmp_path / "gone.safetensors")
    (tmp_path / "gone.safetensors").unlink()
    result, _ = run(engine, {0: "a", 4: "gone"})
    assert result.finish_reason == "error" and "gone.safetensors" in result.error
    assert len(result.token_ids) == 4 and engine.stats().blocks_in_use == 0


def test_each_position_has_the_key_of_its_own_mixture(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()

    def keys_of(sequence: Sequence) -> list[bytes]:
        # Asked for at any time, of a token that is not computed yet, too.
        keys = bytes(engine._blocks.prefix_key(sequence))
        return [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]

    sequence = engine._prepare(Request(PROMPT, expert="late", max_tokens=9))
    assert sequence.base_until(1) == len(PROMPT)
    computed_by = ["late"] * len(PROMPT)
    for token, choice in enumerate(("late", MIXED, "a", "a", "late", None)):
        sequence.token_ids.append(token)
        keys_of(sequence)
        sequence.rescale(engine.bank.resolve(Mixture.parse("b")))
        keys_of(sequence)
        sequence.rescale(engine.bank.resolve(Mixture.parse(choice)))
        computed_by.append(choice)
        plain = [keys_of(engine._prepare(Request(sequence.token_ids, expert=c))) for c in computed_by]
        assert keys_of(sequence) == [keys[at] for at, keys in enumerate(plain)]
        assert [sequence.mixture_at(at).digest for at in range(len(computed_by))] == [
            engine.bank.resolve(Mixture.parse(c)).digest for c in computed_by
        ]
    sequence.kv.prefix_key.clear()
    assert keys_of(sequence) == [keys[at] for at, keys in enumerate(plain)]
    # Of "late" alone the prompt's first layer would be the base model's.
    assert sequence.base_until(1) == 0
