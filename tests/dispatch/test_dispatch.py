"""Requests whose expert a dispatcher finds: exact, the same bits in any company, and no token computed twice."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile

import pytest
import torch

from zweave import Dispatch, Engine, Request, Result, Sampling, ZweaveError
from zweave.dispatch import (
    Dispatcher,
    EarlyClassifier,
    FixedDispatcher,
    HiddenDispatcher,
    PromptDispatcher,
    Routes,
)
from zweave.experts.mixture import ExpertChoice
from zweave.text import PromptTemplate

TinyEngine = Callable[..., Engine]
LABELS = ("x", "y", "z")
ALWAYS = {"x": "a", "y": "b", "z": None}
AFTER = {"x": "tail-a", "y": "tail-b", "z": None}
LATE = {"x": "late", "y": "late-b", "z": {"late": 0.5, "late-b": 0.5}}
MIXED = {"x": "a", "y": "tail-b", "z": {"a": 0.5, "b": 0.5}}


def classifier(layer: int = 1, scale: float = 3.0) -> EarlyClassifier:
    """Random, and far enough from even that prompts fall into all of its classes."""
    generator = torch.Generator().manual_seed(layer)
    weight = scale * torch.randn(3, 32, generator=generator)
    return EarlyClassifier(LABELS, layer, weight - weight.mean(), torch.zeros(3))


def hidden(experts: dict, layer: int = 1, **fields: object) -> HiddenDispatcher:
    return HiddenDispatcher(classifier(layer), Routes(experts, **fields))


def asking(experts: dict, **fields: object) -> PromptDispatcher:
    return PromptDispatcher(Routes(experts), "x, y or z?", "It is", **fields)


def chat(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


STORY = "the quick brown fox jumps over a lazy dog and runs away from it at once"


def traffic(count: int, dispatchers: Sequence[Dispatcher]) -> list[Request]:
    """Prompts that begin alike, each for a dispatcher, every fourth under an expert that it names."""
    words = STORY.split()
    generator = torch.Generator().manual_seed(0)
    requests = []
    for i in range(count):
        tail = [words[j] for j in torch.randint(0, len(words), (1 + i % 5,), generator=generator).tolist()]
        text = " ".join((words * 2)[: i % 11] + tail)
        auto = i % 4 != 3
        requests.append(
            Request(
                messages=chat(text),
                expert="auto" if auto else [None, "a", "tail-b"][i // 4 % 3],
                dispatcher=dispatchers[i % len(dispatchers)] if auto else None,
                max_tokens=1 + i % 6,
                ignore_eos=True,
                logprobs=96,
                sampling=Sampling(temperature=float(i % 3 == 2), seed=i),
                salt=(None, "tenant")[i % 7 == 6],
            )
        )
    return requests


def told(results: Sequence[Result], requests: Sequence[Request]) -> list[Request]:
    """The same requests with what was chosen named by an oracle."""
    return [replace(q, expert=r.expert, dispatcher=None) for q, r in zip(requests, results, strict=True)]


STRATEGIES: dict[str, Callable[[], list[Dispatcher]]] = {
    "hidden, after the prompt": lambda: [hidden(AFTER)],
    "hidden, always": lambda: [hidden(ALWAYS)],
    "hidden, both": lambda: [hidden(MIXED)],
    "hidden, two layers": lambda: [hidden(AFTER), hidden(ALWAYS, 2), hidden(ALWAYS, 1), hidden(MIXED, 2)],
    "hidden, late": lambda: [hidden(LATE), hidden(LATE, 2), hidden(LATE, soft=True)],
    "prompt, late": lambda: [asking(LATE)],
    "prompt": lambda: [asking(AFTER)],
    "prompt, instruction first": lambda: [asking(ALWAYS, instruction_first=True)],
    "classifier": lambda: [asking(MIXED, expert="late")],
    "soft": lambda: [hidden(ALWAYS, soft=True)],
    "all": lambda: [hidden(AFTER), asking(MIXED), FixedDispatcher("a"), hidden(ALWAYS), hidden(LATE)],
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_in_any_company_and_as_an_oracle_says(
    make_engine: TinyEngine, strategy: Callable[[], list[Dispatcher]], dtype: str
) -> None:
    requests = traffic(32, strategy())
    plain = make_engine(dtype, prefix_cache=False)
    alone = [plain.generate(request)[0] for request in requests]
    assert not any(result.error for result in alone)
    for options in (
        {},
        {"prefix_cache": False},
        {"max_batch_tokens": 7, "max_sequences": 7},
        {"kv_tokens": 160, "slots": 3},
        {"block_size": 6},
    ):
        engine = make_engine(dtype, **options)
        assert engine.generate(requests) == alone
        assert engine.generate(requests[::-1])[::-1] == alone
    oracle = make_engine(dtype).generate(told(alone, requests))
    assert [replace(result, dispatch=None) for result in alone] == oracle
    labels = {result.dispatch.label for result in alone if result.dispatch and result.dispatch.label}
    assert len(labels) > 1 or strategy is STRATEGIES["prompt, instruction first"]


def chosen(result: Result) -> tuple[object, ...]:
    """What a rounding error leaves alone."""
    return result.token_ids, result.error, None if result.dispatch is None else result.dispatch.label


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_gpu_chooses_and_answers_the_same(
    make_engine: TinyEngine, strategy: Callable[[], list[Dispatcher]]
) -> None:
    requests = traffic(12, strategy())
    wanted = make_engine().generate(requests)
    for options in ({}, {"max_batch_tokens": 17, "max_sequences": 7, "kv_tokens": 160, "slots": 3}):
        given = make_engine(device="reference", **options).generate(requests)
        assert [chosen(result) for result in given] == [chosen(result) for result in wanted]


@pytest.mark.parametrize("name", ["prompt, late", "all"])
def test_a_chosen_experts_words_are_those_of_a_named_one(make_engine: TinyEngine, name: str) -> None:
    template = PromptTemplate("Film: {text}\nGood?", "It is", max_tokens=3)

    def engine(**options: object) -> Engine:
        made = make_engine(**options)
        for expert in ("a", "tail-b", "late"):
            read = made.bank.registered(expert).read()
            made.load_expert(expert, replace(read, prompt_template=template))
        return made

    requests = traffic(32, STRATEGIES[name]())
    results = engine(prefix_cache=False).generate(requests)
    assert engine(max_batch_tokens=7, max_sequences=7).generate(requests) == results
    named = engine().generate(told(results, requests))
    assert [replace(result, dispatch=None) for result in results] == named
    dispatched = [result for result in results if result.dispatch]
    assert any(result.asked for result in dispatched) and not all(result.asked for result in dispatched)


def computed(engine: Engine, requests: Sequence[Request]) -> tuple[int, list[Result]]:
    before = engine.stats().tokens_computed
    results = engine.generate(requests)
    return engine.stats().tokens_computed - before, results


@pytest.mark.parametrize(
    "options", [{}, {"prefix_cache": False}, {"max_batch_tokens": 9, "max_sequences": 9}]
)
def test_hidden_and_after_the_prompt_computes_no_token_twice(make_engine: TinyEngine, options: dict) -> None:
    texts = ("what a long story this is, and so well told", "2 + 2 and a half", "abc")
    requests = [
        Request(messages=chat(text), expert="auto", dispatcher=hidden(AFTER), max_tokens=5, ignore_eos=True)
        for text in texts
    ]
    count, results = computed(make_engine(**options), requests)
    assert count == sum(result.prompt_tokens - result.reused_tokens + 4 for result in results)
    assert {result.dispatch.tokens for result in results} == {0}
    # The template's own beginning may be shared.
    assert all(result.reused_tokens <= len("<>user\n") for result in results)


def test_what_a_named_request_computed_is_read_as_well(make_engine: TinyEngine) -> None:
    """Not anew: from the first first pass on, all keep the states of its layer."""
    engine = make_engine()
    first, second = "the quick brown fox jumps", "the quick brown fox sleeps"
    auto = Request(messages=chat("abc"), expert="auto", dispatcher=hidden(AFTER, 2), max_tokens=1)
    named = Request(messages=chat(first), expert="tail-b", max_tokens=1)
    engine.generate([auto])
    engine.generate([named])
    count, (found,) = computed(engine, [replace(auto, messages=chat(second))])
    tokens = [engine.tokenizer.chat(chat(text)) for text in (first, second)]
    shared = next(i for i, (one, other) in enumerate(zip(*tokens, strict=False)) if one != other)
    assert shared % engine.config.block_size, "the tokens that both begin with end amid a block"
    assert count == len(tokens[1]) - shared == len(tokens[1]) - found.reused_tokens
    (alone,) = make_engine().generate([replace(auto, messages=chat(second))])
    assert found.dispatch.probabilities == alone.dispatch.probabilities


@pytest.mark.parametrize("experts", [AFTER, LATE], ids=["after the prompt", "first layer 1"])
def test_hidden_takes_as_many_steps_as_an_oracle(make_engine: TinyEngine, experts: dict) -> None:
    requests = [
        Request(messages=chat(f"{word} and so on"), expert="auto", dispatcher=hidden(experts), max_tokens=3)
        for word in ("one", "other", "a third")
    ]

    def steps(requests: Sequence[Request]) -> tuple[int, list[Result]]:
        engine, count = make_engine(prefix_cache=False), 0
        results = {}
        ids = [engine.add(request) for request in requests]
        while engine.has_work:
            results |= {delta.request_id: delta.result for delta in engine.step()}
            count += 1
        return count, [results[i] for i in ids]

    count, results = steps(requests)
    assert count == steps(told(results, requests))[0]


def watch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int | None]]:
    """Which layers were computed for how many tokens."""
    ranges: list[tuple[int, int, int | None]] = []
    decoder = engine.model.decoder

    def watched(
        x: torch.Tensor, residual: torch.Tensor, batch: object, first: int = 0, last: int | None = None
    ):
        ranges.append((len(x), first, last))
        return decoder(x, residual, batch, first, last)

    monkeypatch.setattr(engine.model, "decoder", watched)
    return ranges


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("experts", [("a", "b"), ("late", "late-b")], ids=["first layer 0", "first layer 1"])
def test_hidden_and_always_ends_at_the_layer(
    make_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch, experts: tuple[str, str], threshold: float
) -> None:
    """An expert that adapts the layers below has the prompt read anew, the base and others go on from the layer."""
    engine = make_engine()
    dispatcher = hidden(dict(zip(LABELS, experts)), threshold=threshold)  # noqa: B905
    request = Request(messages=chat("one two three"), expert="auto", dispatcher=dispatcher, max_tokens=1)
    ranges = watch(engine, monkeypatch)
    computed_tokens, (result,) = computed(engine, [request])
    tokens = engine.tokenizer.chat(request.messages)
    end = engine.tokenizer.after_prompt_start(tokens)
    assert (result.expert is None) == (threshold == 1.0 or result.dispatch.label == "z")
    if result.expert in ("a", "b"):
        assert ranges == [(end, 0, 1), (len(tokens), 0, None)]
        assert result.dispatch.tokens == end
    else:
        assert ranges == [(end, 0, 1), (len(tokens) - end, 0, 1), (len(tokens), 1, None)]
        assert result.dispatch.tokens == 0
    assert computed_tokens == len(tokens) + result.dispatch.tokens


def test_the_state_is_the_mean_that_the_engine_gives(make_engine: TinyEngine) -> None:
    class Kept(HiddenDispatcher):
        states: list[torch.Tensor] = []  # noqa: RUF012

        def choose(self, prompt: object, evidence: torch.Tensor) -> Dispatch:
            self.states.append(evidence)
            return super().choose(prompt, evidence)

    dispatcher = Kept(classifier(2), Routes(AFTER))
    engine = make_engine(max_batch_tokens=10, max_sequences=4)
    texts = ["the same beginning, and then " + tail for tail in ("this", "that", "this", "something else")]
    prompts = [engine.tokenizer.chat(chat(text)) for text in texts]
    for i, text in enumerate(texts):
        request = Request(messages=chat(text), expert="auto", dispatcher=dispatcher, max_tokens=3)
        reused = engine.generate(request)[0].reused_tokens
        # All that it has in common with one before, whole blocks or not.
        pairs = [zip(prompts[i], other, strict=False) for other in prompts[:i]]
        shared = max(
            [len(list(takewhile(lambda pair: pair[0] == pair[1], both))) for both in pairs], default=0
        )
        assert reused == min(shared, engine.tokenizer.after_prompt_start(prompts[i]) - 1)
    cut = [tokens[: engine.tokenizer.after_prompt_start(tokens)] for tokens in prompts]
    expected = make_engine(prefix_cache=False).pooled_states(cut, [2])[0]
    assert torch.equal(torch.stack(dispatcher.states), expected)


def test_a_text_that_comes_before_its_question_is_read_once(make_engine: TinyEngine) -> None:
    engine = make_engine()
    text = "a text of some length, so that it fills more than a few blocks"
    request = Request(messages=chat(text), expert="auto", dispatcher=asking(AFTER), max_tokens=1)
    count, (result,) = computed(engine, [request])
    tokens = engine.tokenizer.chat(request.messages)
    end = engine.tokenizer.after_prompt_start(tokens)
    assert (result.reuse, result.reused_tokens) == ("after_prompt" if result.expert else "same_mixture", end)
    assert count == result.dispatch.tokens + len(tokens) - end
    # The instruction in front is the same for all, and their own text is not shared.
    dispatcher = asking(AFTER, instruction_first=True)
    first, second = (
        engine.generate(Request(messages=chat(words), expert="auto", dispatcher=dispatcher, max_tokens=1))[0]
        for words in (text, f"other {text}")
    )
    assert second.dispatch.tokens < first.dispatch.tokens
    assert first.reused_tokens >= end


def test_one_token_and_prompts_without_a_header(make_engine: TinyEngine) -> None:
    prompts = [[5], [5, 6], list(range(3, 40)), "abc"]
    for experts in (AFTER, ALWAYS, MIXED):
        for dispatcher in (hidden(experts), asking(experts)):
            engine = make_engine()
            requests = [
                Request(
                    prompt, expert="auto", dispatcher=dispatcher, max_tokens=4, ignore_eos=True, logprobs=5
                )
                for prompt in prompts
            ]
            results = engine.generate(requests)
            oracle = make_engine(prefix_cache=False).generate(told(results, requests))
            assert [replace(result, dispatch=None) for result in results] == oracle


def test_a_conversation_reads_its_earlier_turns_from_the_cache(make_engine: TinyEngine) -> None:
    engine, fresh = make_engine(kv_tokens=2048), make_engine(kv_tokens=2048, prefix_cache=False)
    messages: list[dict[str, str]] = []
    known = 0
    for turn in range(4):
        messages = [*messages, *chat(f"turn {turn} of a long talk about nothing")]
        request = Request(
            messages=messages, expert="auto", dispatcher=hidden(AFTER), max_tokens=6, ignore_eos=True
        )
        (result,) = engine.generate(request)
        assert [result] == fresh.generate(request)
        # All whole blocks of the turns before, but for the assistant's words, which the expert had computed.
        assert result.reused_tokens > known - engine.config.block_size
        known = engine.tokenizer.after_prompt_start(engine.tokenizer.chat(messages))
        messages = [*messages, {"role": "assistant", "content": result.text}]


def test_a_second_pass_waits_for_a_slot(make_engine: TinyEngine) -> None:
    engine = make_engine(slots=1)
    requests = [
        Request([3 + i] * 9, expert="auto", dispatcher=FixedDispatcher(name), max_tokens=5, ignore_eos=True)
        for i, name in enumerate(["tail-a", "tail-b", "a", "tail-b"])
    ]
    requests += [replace(request, dispatcher=hidden(AFTER)) for request in requests]
    assert engine.generate(requests) == make_engine().generate(requests)


def test_the_threshold_and_what_is_told(make_engine: TinyEngine) -> None:
    sure, unsure = hidden(AFTER), hidden(AFTER, threshold=1.0)
    request = Request(messages=chat("a b c"), expert="auto", dispatcher=sure, max_tokens=2)
    result, doubtful = make_engine().generate([request, replace(request, dispatcher=unsure)])
    assert (result.dispatch.label, result.dispatch.probabilities) == (
        doubtful.dispatch.label,
        doubtful.dispatch.probabilities,
    )
    assert result.expert == result.dispatch.mixture == AFTER[result.dispatch.label]
    assert doubtful.expert is doubtful.dispatch.mixture is None
    assert result.dispatch.confidence == max(result.dispatch.probabilities.values())
    assert sum(result.dispatch.probabilities.values()) == pytest.approx(1)
    assert result.dispatch.seconds > 0


def test_the_engines_dispatcher_and_the_requests_own(make_engine: TinyEngine) -> None:
    engine = make_engine()
    with pytest.raises(ZweaveError, match="needs a dispatcher"):
        engine.generate(Request([5], expert="auto"))
    engine.dispatcher = FixedDispatcher("a", "label", 0.5)
    mine, own = engine.generate(
        [Request([5], expert="auto"), Request([5], expert="auto", dispatcher=FixedDispatcher("b"))]
    )
    assert (mine.expert, own.expert) == ("a", "b")
    assert (mine.dispatch.label, mine.dispatch.confidence) == ("label", 0.5)
    with pytest.raises(ZweaveError, match="is for expert='auto'"):
        Request([5], expert="a", dispatcher=FixedDispatcher("b"))


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("fallback", ["tail-b", "a", {"a": 0.5, "b": 0.5}], ids=str)
@pytest.mark.parametrize(
    "experts", [{"x": None, "y": None, "z": None}, {"x": "late", "y": "late-b"}], ids=["base", "late"]
)
def test_the_fallback_answers_in_place_of_the_base(
    make_engine: TinyEngine, experts: dict, fallback: ExpertChoice, device: str
) -> None:
    engine = make_engine(device=device)
    unsure = hidden(experts, threshold=1.0)
    request = Request(messages=chat("a b c"), expert="auto", dispatcher=unsure, max_tokens=3, logprobs=1)
    told, base, alone = engine.generate(
        [
            replace(request, fallback=fallback),
            request,
            replace(request, expert=fallback, dispatcher=None),
        ]
    )
    assert told.expert == told.dispatch.mixture == fallback and base.expert is None
    assert told.token_ids == alone.token_ids and told.logprobs != base.logprobs
    # What stands in for a GPU rounds as the batch is.
    assert device == "reference" or told.logprobs == alone.logprobs


def test_a_fallback_leaves_a_sure_choice_and_errors_alone(make_engine: TinyEngine) -> None:
    engine = make_engine(on_dispatch_error="base")
    request = Request(messages=chat("a b c"), expert="auto", fallback="b", max_tokens=2)
    sure, wrong = engine.generate(
        [replace(request, dispatcher=FixedDispatcher(name)) for name in ("a", "nobody")]
    )
    assert sure.expert == "a"
    assert wrong.expert is None and "nobody" in wrong.dispatch.error
    with pytest.raises(ZweaveError, match="fallback is for expert='auto'"):
        Request([5], expert="a", fallback="b")
    with pytest.raises(ZweaveError, match="not 'auto'"):
        Request([5], expert="auto", fallback="auto")
    with pytest.raises(ZweaveError, match="nobody"):
        engine.generate(replace(request, fallback="nobody", dispatcher=FixedDispatcher("a")))
