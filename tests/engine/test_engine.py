"""The engine on small random models: equal to transformers with merged weights, whatever shares the batch."""

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import processors

from zweave import Engine, Request, Sampling, ZweaveError
from zweave.engine.sampler import logprobs, sample_token
from zweave.scheduler import Sequence

TinyEngine = Callable[..., Engine]
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 4]


def mixed_requests(count: int, **fields: object) -> list[Request]:
    """Requests of different length under the base, each expert and mixtures, some of them sampling."""
    experts = itertools.cycle(
        [None, "a", {"a": 0.5, "b": 0.5}, "late", {"b": [1.2, -0.3]}, "b", {"a": 2.0, "late": -1.0}]
    )
    generator = torch.Generator().manual_seed(0)
    return [
        Request(
            torch.randint(0, 96, (1 + 7 * i % 45,), generator=generator).tolist(),
            expert=next(experts),
            max_tokens=3 + i % 9,
            ignore_eos=True,
            logprobs=96,
            sampling=Sampling(temperature=float(i % 3 == 2), seed=i),
            **fields,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_do_not_depend_on_the_batch_bit_for_bit(tiny_engine: TinyEngine, dtype: str) -> None:
    requests = mixed_requests(32)
    together = tiny_engine(dtype).generate(requests)
    engine = tiny_engine(dtype)
    assert [engine.generate(request)[0] for request in requests] == together
    chunked = tiny_engine(dtype, max_batch_tokens=5, max_sequences=5)
    assert chunked.generate(requests) == together


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_preempted_requests_give_the_same_bits(tiny_engine: TinyEngine, dtype: str) -> None:
    requests = mixed_requests(32)
    cramped = tiny_engine(dtype, kv_tokens=60, slots=3)
    assert cramped.generate(requests) == tiny_engine(dtype).generate(requests)
    assert cramped.stats().preemptions > 0


def test_experts_matter(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    requests = [Request(PROMPT, expert=name, max_tokens=1, logprobs=96) for name in (None, "a", "b", "late")]
    tops = [result.logprobs[0].top for result in engine.generate(requests)]
    for one, other in itertools.combinations(tops, 2):
        assert max(abs(one[token] - other[token]) for token in range(96)) > 1e-2


def test_a_mixture_of_one_is_that_expert(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    alone, mixed = engine.generate(
        [Request(PROMPT, expert=expert, max_tokens=5, logprobs=96) for expert in ("a", {"a": 1.0})]
    )
    assert alone.logprobs == mixed.logprobs


def test_max_tokens_and_context_end_an_answer(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine(kv_tokens=24)
    short, long = engine.generate(
        [Request(PROMPT, max_tokens=3, ignore_eos=True), Request(PROMPT, max_tokens=1000, ignore_eos=True)]
    )
    assert (len(short.token_ids), short.finish_reason) == (3, "length")
    assert (len(long.token_ids), long.finish_reason) == (24 - len(PROMPT), "length")
    with pytest.raises(ZweaveError, match="at most 23"):
        engine.generate(Request([1] * 24))


def test_end_token_ends_an_answer(tiny_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    free = engine.generate(Request(PROMPT, max_tokens=8, ignore_eos=True))[0].token_ids
    monkeypatch.setattr(engine._output_processor, "_eos_ids", (free[4],))
    end = free.index(free[4])
    ended = engine.generate(Request(PROMPT, max_tokens=8))[0]
    assert (ended.token_ids, ended.finish_reason) == (free[: end + 1], "stop")
    assert engine.generate(Request(PROMPT, max_tokens=8, ignore_eos=True))[0].token_ids == free


def test_stop_tokens_end_an_answer(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    free = engine.generate(Request(PROMPT, max_tokens=8, ignore_eos=True))[0].token_ids
    end = free.index(free[4])
    request = Request(PROMPT, max_tokens=8, ignore_eos=True, stop_token_ids=[free[4]])
    stopped = engine.generate(request)[0]
    assert (stopped.token_ids, stopped.finish_reason) == (free[: end + 1], "stop")
    assert stopped.text == engine.tokenizer.decode(free[:end])
    with pytest.raises(ZweaveError, match="token ids must be integers from 0 to 95, not 96"):
        engine.generate(Request(PROMPT, stop_token_ids=[96]))


def test_a_special_token_as_stop_string_ends_an_answer(
    tiny_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine()
    free = engine.generate(Request(PROMPT, max_tokens=8, ignore_eos=True))[0].token_ids
    end = free.index(free[4])
    special = frozenset([*engine.tokenizer.token_bytes._special, free[4]])
    monkeypatch.setattr(engine.tokenizer.token_bytes, "_special", special)
    written = engine.tokenizer.decode([free[4]], skip_special=False)
    stopped = engine.generate(Request(PROMPT, max_tokens=8, ignore_eos=True, stop=written))[0]
    assert (stopped.token_ids, stopped.finish_reason) == (free[: end + 1], "stop")


def test_special_tokens_of_a_prompt_are_the_request_s_choice(
    tiny_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine()
    tokenizer = engine.tokenizer
    begin = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    monkeypatch.setattr(tokenizer._tokenizer, "post_processor", begin)
    text, chat = "a<|im_end|>", [{"role": "user", "content": "a<|im_end|>"}]

    def tokens(**fields: object) -> list[int]:
        return engine._prepare(Request(**fields)).token_ids

    bare = tokens(prompt=text, add_special_tokens=False)
    assert bare[-1] == 2
    assert tokens(prompt=text) == tokens(prompt=text, add_special_tokens=True) == [0, *bare]
    assert tokens(messages=chat, add_special_tokens=True) == [0, *tokens(messages=chat)]
    assert tokens(prompt=bare, add_special_tokens=True) == bare
    assert tokens(prompt=text, escape_special=True) == tokenizer.encode(text, escape_special=True)
    assert tokens(messages=chat, escape_special=True) == tokenizer.chat(chat, escape_special=True)


def test_logprobs_add_up_and_name_the_greedy_token(tiny_engine: TinyEngine) -> None:
    result = tiny_engine().generate(Request(PROMPT, max_tokens=4, logprobs=96))[0]
    for token_id, entry in zip(result.token_ids, result.logprobs, strict=True):
        assert entry.token_id == token_id == next(iter(entry.top))
        assert entry.logprob == entry.top[token_id]
        assert sum(torch.tensor(list(entry.top.values())).exp()) == pytest.approx(1)


def test_seeded_draws_repeat_and_others_do_not(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()

    def answer(seed: int | None) -> list[int]:
        sampling = Sampling(temperature=2.0, seed=seed)
        return engine.generate(Request(PROMPT, max_tokens=20, ignore_eos=True, sampling=sampling))[
            0
        ].token_ids

    assert answer(1) == answer(1) != answer(2)
    assert answer(None) != answer(None)


def test_stream_equals_generate_and_may_be_left(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    request = Request(PROMPT, expert="a", max_tokens=9, ignore_eos=True)
    whole = engine.generate(request)[0]
    deltas = list(engine.stream(request))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
    assert deltas[-1].result == whole
    stream = engine.stream(request)
    assert next(stream).result is None
    stream.close()
    assert not engine.has_work


def test_cancelled_request_keeps_what_it_has(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    request_id = engine.add(Request(PROMPT, max_tokens=50, ignore_eos=True))
    other_id = engine.add(Request(PROMPT, max_tokens=3, ignore_eos=True))
    engine.step()
    engine.cancel(request_id)
    engine.cancel(request_id)
    finished = {}
    while engine.has_work:
        finished |= {delta.request_id: delta.result for delta in engine.step() if delta.result}
    assert (finished[request_id].finish_reason, len(finished[request_id].token_ids)) == ("cancelled", 1)
    assert len(finished[other_id].token_ids) == 3


def test_deltas_of_added_requests_survive_a_generate(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    request_id = engine.add(Request(PROMPT, max_tokens=3, ignore_eos=True))
    engine.generate(Request(PROMPT, max_tokens=9, ignore_eos=True))
    tokens = [token for delta in engine.step() if delta.request_id == request_id for token in delta.token_ids]
    assert len(tokens) == 3
    assert not engine.has_work


def test_more_experts_than_slots_are_served(tiny_engine: TinyEngine) -> None:
    requests = mixed_requests(20)
    assert tiny_engine(slots=1).generate(requests) == tiny_engine().generate(requests)


def test_experts_come_and_go_while_serving(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    request = Request(PROMPT, expert="a", max_tokens=12, ignore_eos=True)
    wanted = engine.generate(request)[0]
    stream = engine.stream(request)
    next(stream)
    engine.load_expert("a", engine.bank.registered("b").read())
    assert list(stream)[-1].result == wanted, "a running request keeps its expert"
    assert (
        engine.generate(request)[0].token_ids
        == engine.generate(Request(PROMPT, expert="b", max_tokens=12, ignore_eos=True))[0].token_ids
    )
    engine.unload_expert("a")
    with pytest.raises(ZweaveError, match="no expert 'a'"):
        engine.generate(request)


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"prompt": PROMPT, "expert": "nobody"}, "no expert 'nobody'"),
        ({"prompt": PROMPT, "expert": "auto"}, "auto"),
        ({"prompt": PROMPT, "expert": {"a": float("nan")}}, "finite"),
        ({"prompt": PROMPT, "expert": {"a": [1.0]}}, "layers"),
        ({"prompt": PROMPT, "expert": {}}, "empty"),
        ({"prompt": [96]}, "from 0 to 95"),
        ({"prompt": [-1]}, "from 0 to 95"),
        ({"prompt": [1.5]}, "from 0 to 95"),
    ],
    ids=str,
)
def test_bad_request_is_refused_before_any_other_starts(
    tiny_engine: TinyEngine, request_fields: dict, message: str
) -> None:
    engine = tiny_engine()
    with pytest.raises(ZweaveError, match=message):
        engine.generate([Request(PROMPT), Request(**request_fields)])
    assert not engine.has_work


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float16"},
        {"device": "tpu"},
        {"slots": 0},
        {"max_sequences": 2.5},
        {"max_batch_tokens": 8},
        {"kv_tokens": 3},
        {"block_size": 7},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_bad_option_is_refused(tiny_model: Callable[..., Path], options: dict) -> None:
    with pytest.raises(ZweaveError, match=next(iter(options))):
        Engine(tiny_model("llama", vocab_size=96), **options)


def test_a_step_that_fails_can_be_taken_again(
    tiny_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine()
    requests = mixed_requests(8)
    wanted = tiny_engine().generate(requests)
    calls = itertools.count()

    def interrupted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            if next(calls) % 7 == 1:
                raise KeyboardInterrupt
            return function(*args)

        return call

    monkeypatch.setattr("zweave.engine.sampler.sample_token", interrupted(sample_token))
    monkeypatch.setattr("zweave.engine.sampler.logprobs", interrupted(logprobs))
    monkeypatch.setattr(Sequence, "land", interrupted(Sequence.land))
    monkeypatch.setattr(Sequence, "append", interrupted(Sequence.append))
    ids = [engine.add(request) for request in requests]
    results = {}
    for _ in range(500):
        if not engine.has_work:
            break
        with contextlib.suppress(KeyboardInterrupt):
            results |= {delta.request_id: delta.result for delta in engine.step() if delta.result}
    assert [results[request_id] for request_id in ids] == wanted


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("weight", [1e12, 1e30])
def test_a_mixture_that_overflows_fails_its_request_alone(
    weight: float, device: str, tiny_engine: TinyEngine
) -> None:
    """Far below what float32 holds, squares overflow in the norms, and the hidden state becomes 0."""
    broken, fine = tiny_engine(device=device).generate(
        [Request(PROMPT, expert={"a": weight}, max_tokens=4), Request(PROMPT, max_tokens=4, ignore_eos=True)]
    )
    assert (broken.finish_reason, broken.token_ids) == ("error", [])
    assert "finite" in broken.error or "large" in broken.error
    assert len(fine.token_ids) == 4


def test_cancelled_text_is_whole(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    request_id = engine.add(Request(PROMPT, max_tokens=50, ignore_eos=True, stop="\x00never\x00"))
    for _ in range(5):
        engine.step()
    engine.cancel(request_id)
    result = engine.step()[0].result
    assert result.text == engine.tokenizer.decode(result.token_ids)


def test_scores_are_the_log_probabilities_at_the_prompts_end(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    wanted = [5, 90, 5, 0]
    requests = [
        Request(PROMPT[: 2 + i], expert=[None, "a", {"a": 0.5, "b": 0.5}][i % 3], score=wanted, **fields)
        for i, fields in enumerate(
            [{"max_tokens": 3}, {"max_tokens": 1}, {"sampling": Sampling(1.0, seed=3)}]
        )
    ]
    asked = [Request(r.prompt, expert=r.expert, max_tokens=1, logprobs=96) for r in requests]
    for result, plain in zip(engine.generate(requests), engine.generate(asked), strict=True):
        assert result.scores == [plain.logprobs[0].top[token] for token in wanted]
        assert plain.scores is None and result.logprobs is None
    for bad, words in (
        ([96], "token ids must be"),
        ("5", "score must be a list"),
        (5, "score must be a list"),
    ):
        with pytest.raises(ZweaveError, match=words):
            engine.generate(Request(PROMPT, score=bad))


def test_an_expert_is_given_as_tensors(tiny_engine: Callable[..., Engine]) -> None:
    engine = tiny_engine()
    z = engine.bank.registered("a").read().z
    wanted = engine.generate(Request([3, 14, 15], expert="a", max_tokens=8, ignore_eos=True))[0]
    engine.load_expert("mine", {module: values.double() for module, values in z.items()})
    found = engine.generate(Request([3, 14, 15], expert="mine", max_tokens=8, ignore_eos=True))[0]
    assert found.token_ids == wanted.token_ids and found.reuse == "same_mixture"
    with pytest.raises(ZweaveError, match="z must be a vector"):
        engine.load_expert("mine", {module: values[None] for module, values in z.items()})
