"""The built-in dispatchers, each alone: what it asks, and what it chooses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from zweave import Dispatch, Engine, Request, ZweaveError
from zweave.dispatch import (
    EarlyClassifier,
    FixedDispatcher,
    HiddenDispatcher,
    Prompt,
    PromptDispatcher,
    ReadScores,
    Routes,
    few_shot,
)
from zweave.dispatcher import probe_method
from zweave.engine.call_pool import CallPool
from zweave.tasks import prompt_ids, prompts

TinyEngine = Callable[..., Engine]
EXPERTS = {"x": "a", "y": {"a": 0.25, "b": [0.5, 1.5]}, "z": None}


@pytest.fixture(scope="module")
def engine(tiny_engine: TinyEngine) -> Engine:
    return tiny_engine()


def prompt_of(engine: Engine, *turns: str) -> Prompt:
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]
    tokens = engine.tokenizer.chat(messages)
    return Prompt(tokens, engine.tokenizer.after_prompt_start(tokens), engine.tokenizer)


def test_routes_choose_the_likeliest_label() -> None:
    routes = Routes(EXPERTS, threshold=0.5)
    assert routes.dispatch("xyz", [0.7, 0.2, 0.1]) == Dispatch("x", {"x": 0.7, "y": 0.2, "z": 0.1}, "a", 0.7)
    assert routes.dispatch("xyz", [0.1, 0.5, 0.4]).mixture == EXPERTS["y"]
    assert routes.dispatch("xyz", [0.4, 0.35, 0.25]) == Dispatch(
        "x", {"x": 0.4, "y": 0.35, "z": 0.25}, None, 0.4
    )
    assert routes.dispatch("xyz", [0.1, 0.1, 0.8]).mixture is None
    # A label that nobody routes is answered by the base.
    assert routes.dispatch("xw", [0.2, 0.8]) == Dispatch("w", {"x": 0.2, "w": 0.8}, None, 0.8)
    with pytest.raises(ZweaveError, match="not finite"):
        routes.dispatch("xyz", [float("nan"), 0.5, 0.5])


def test_soft_probabilities_become_weights() -> None:
    soft = Routes({"x": "a", "y": "b", "z": "a", "w": None}, soft=True)
    assert soft.dispatch("xyzw", [0.5, 0.25, 0.125, 0.125]).mixture == pytest.approx({"a": 5 / 7, "b": 2 / 7})
    assert soft.dispatch("xyzw", [0.2, 0.2, 0.1, 0.5]).mixture is None
    layered = Routes(EXPERTS, soft=True).dispatch("xyz", [0.6, 0.2, 0.2]).mixture
    assert layered["a"] == pytest.approx((0.75 + 0.25 * 0.25,) * 2)
    assert layered["b"] == pytest.approx((0.25 * 0.5, 0.25 * 1.5))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"experts": {}}, "one label at least"),
        ({"experts": "a"}, "map labels to experts"),
        ({"experts": {5: "a"}}, "a label must be a string"),
        ({"experts": {"x": "two words"}}, "cannot be an expert's name"),
        ({"experts": {"x": "auto"}}, "needs a dispatcher"),
        ({"experts": EXPERTS, "threshold": 1.5}, "from 0 to 1"),
        ({"experts": EXPERTS, "threshold": True}, "from 0 to 1"),
        ({"experts": EXPERTS, "soft": 1}, "True or False"),
    ],
    ids=str,
)
def test_bad_routes_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ZweaveError, match=words):
        Routes(**fields)


def test_the_question_stands_after_the_text_or_before_it(engine: Engine) -> None:
    routes = Routes(EXPERTS)
    first_turn, prompt = prompt_of(engine, "hello"), prompt_of(engine, "hello", "yes?", " so long ")

    def asked(prompt: Prompt, **fields: object) -> str:
        probe = PromptDispatcher(routes, "x, y or z?", "It is", **fields).probe(prompt)
        assert probe.score == tuple(engine.tokenizer.encode("xyz"))
        return engine.tokenizer.decode(probe.tokens, skip_special=False)

    closing = "<|im_end|>\n<|im_start|>assistant\nIt is"
    assert asked(first_turn) == f"<|im_start|>user\nhello\nx, y or z?{closing}"
    assert asked(prompt) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nyes?<|im_end|>\n"
        f"<|im_start|>user\n so long \nx, y or z?{closing}"
    )
    # The text is that of the last turn, with the line break that the header may end in.
    assert asked(prompt, instruction_first=True) == (f"<|im_start|>user\nx, y or z?\n{prompt.text}{closing}")
    assert prompt.text.strip() == "so long"
    assert "so long" not in asked(prompt, instruction_first=True, text_tokens=4)
    # What comes after the text does not change the tokens before it: their keys and values are the request's.
    probe = PromptDispatcher(routes, "x, y or z?").probe(prompt)
    assert list(probe.tokens[: prompt.text_end]) == list(prompt.tokens[: prompt.text_end])


def test_the_expert_of_domains_is_trained_on_what_a_dispatcher_asks(engine: Engine) -> None:
    dispatcher = PromptDispatcher(Routes(EXPERTS), prompts.DOMAIN_QUESTION, prompts.DOMAIN_OPENING)
    for text in ("What is a fish ?", "so long ", "two\nlines"):
        probe = dispatcher.probe(prompt_of(engine, text))
        assert list(probe.tokens) == prompt_ids(engine.tokenizer, prompts.domain(text))


def test_scores_become_probabilities_less_the_offsets(engine: Engine) -> None:
    prompt = prompt_of(engine, "hello")
    plain = PromptDispatcher(Routes(EXPERTS), "x, y or z?")
    shifted = PromptDispatcher(Routes(EXPERTS), "x, y or z?", offsets=[1.0, 0.0, -1.0])
    found = plain.choose(prompt, [-2.0, -1.0, -4.0])
    expected = torch.tensor([-2.0, -1.0, -4.0]).softmax(0).tolist()
    assert list(found.probabilities.values()) == pytest.approx(expected)
    assert (found.label, found.confidence) == ("y", found.probabilities["y"])
    assert (
        shifted.choose(prompt, [-1.0, -1.0, -5.0]).probabilities
        == plain.choose(prompt, [-2.0, -1.0, -4.0]).probabilities
    )


def test_calibration_makes_the_texts_it_saw_even(engine: Engine) -> None:
    for expert in (None, "late"):
        dispatcher = PromptDispatcher(Routes(EXPERTS), "x, y or z?", expert=expert).calibrated(engine, ["ab"])
        probe = dispatcher.probe(prompt_of(engine, "ab"))
        (result,) = engine.generate(
            Request(probe.tokens, expert=probe.expert, score=probe.score, max_tokens=1)
        )
        assert np.array_equal(dispatcher.offsets, result.scores)
        probabilities = dispatcher.choose(prompt_of(engine, "ab"), result.scores).probabilities
        assert list(probabilities.values()) == pytest.approx([1 / 3] * 3)
    with pytest.raises(ZweaveError, match="no texts"):
        dispatcher.calibrated(engine, [])


def test_the_classifier_and_its_routes(engine: Engine) -> None:
    generator = torch.Generator().manual_seed(0)
    classifier = EarlyClassifier(("x", "y", "w"), 2, torch.randn(3, 5, generator=generator), torch.zeros(3))
    dispatcher = HiddenDispatcher(classifier, Routes({"x": "a", "y": "b"}))
    states = torch.randn(20, 5, generator=generator)
    for state, probabilities in zip(states, classifier.probabilities(states), strict=True):
        found = dispatcher.choose(prompt_of(engine, "x"), state)
        assert list(found.probabilities.values()) == probabilities.tolist()
        assert found.mixture == {"x": "a", "y": "b", "w": None}[found.label]
    assert dispatcher.probe(prompt_of(engine, "x")).candidates == ("a", "b")
    with pytest.raises(ZweaveError, match="has no label 'z': its labels are 'x', 'y', 'w'"):
        HiddenDispatcher(classifier, Routes(EXPERTS))


def test_a_mixture_found_by_a_search_is_one_choice_for_all(tiny_engine: TinyEngine, tmp_path: Path) -> None:
    engine = tiny_engine()
    record = {"mixture": [], "search": {"task": "mine", "share": 0.75}}
    found = replace(engine.bank.registered("a").read(), training=record)
    found.save(tmp_path / "found.safetensors")
    dispatcher = few_shot(engine, tmp_path / "found.safetensors")
    (result,) = engine.generate(Request([5, 6], expert="auto", dispatcher=dispatcher, max_tokens=3))
    assert result.token_ids == engine.generate(Request([5, 6], expert="a", max_tokens=3))[0].token_ids
    assert (result.expert, result.dispatch.label, result.dispatch.confidence) == ("found", "mine", 0.75)
    replace(found, training={}).save(tmp_path / "other.safetensors")
    with pytest.raises(ZweaveError, match="is not a mixture of `zweave expert search`"):
        few_shot(engine, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"label": 5}, "label must be a string"),
        ({"probabilities": [0.5]}, "must be a mapping"),
        ({"confidence": 1.5}, "from 0 to 1"),
        ({"confidence": float("nan")}, "from 0 to 1"),
        ({"mixture": {}}, "empty"),
    ],
    ids=str,
)
def test_a_bad_choice_is_refused(fields: dict, words: str) -> None:
    with pytest.raises(ZweaveError, match=words):
        Dispatch(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"routes": Routes({"x": "a"})}, "two labels or more"),
        ({"offsets": [1.0]}, "1 offsets do not fit 3 labels"),
        ({"text_tokens": 0}, "at least 1"),
    ],
    ids=str,
)
def test_a_bad_question_is_refused(fields: dict, words: str) -> None:
    with pytest.raises(ZweaveError, match=words):
        PromptDispatcher(**{"routes": Routes(EXPERTS), "instruction": "x, y or z?", **fields})


@pytest.mark.parametrize(
    ("labels", "words"), [(("long", "y"), "'long' is 4 tokens"), (("x", " x"), "' x' is 2 tokens")], ids=str
)
def test_labels_are_single_tokens(engine: Engine, labels: tuple[str, str], words: str) -> None:
    dispatcher = PromptDispatcher(Routes(dict.fromkeys(labels, "a")), "which?")
    (result,) = engine.generate(Request([5], expert="auto", dispatcher=dispatcher))
    assert words in result.error


def test_a_hanging_dispatcher_does_not_collect_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr("zweave.engine.call_pool._MAX_HANGING", 3)
    gate = threading.Event()
    calls: CallPool[int] = CallPool(timeout=0.02)
    errors = {}
    for number in range(40):
        calls.submit(number, gate.wait, blocking=True)
    while len(errors) < 40:
        calls.wait(0.05)
        errors |= {call.owner: call.error for call in calls.poll()}
    gate.set()
    assert sum("took longer than 0.02 s" in error for error in errors.values()) == 16
    assert sum("earlier calls of dispatchers hang" in error for error in errors.values()) == 24


def test_an_interrupt_loses_no_call() -> None:
    calls: CallPool[str] = CallPool(timeout=1)
    interrupts = [KeyboardInterrupt()]

    def interrupted() -> str:
        if interrupts:
            raise interrupts.pop()
        return "late"

    calls.submit("first", lambda: "early", blocking=False)
    calls.submit("second", interrupted, blocking=False)
    with pytest.raises(KeyboardInterrupt):
        calls.poll()
    assert [(call.owner, call.result) for call in calls.poll()] == [
        ("first", "early"),
        ("second", "late"),
    ]


class Former:
    """Written before `look` was called `probe`."""

    blocking = False

    def look(self, prompt: Prompt) -> ReadScores:
        return ReadScores(prompt.tokens, [5])

    def choose(self, prompt: Prompt, seen: object) -> Dispatch:
        return Dispatch("former", mixture="a")


class FormerPrompt(PromptDispatcher):
    """Overrides a built-in strategy by the former name."""

    def look(self, prompt: Prompt) -> ReadScores:
        scores = super().look(prompt)
        return ReadScores(scores.tokens, scores.score, "a")


class Forwarding:
    """Has no method of its own."""

    def __init__(self, dispatcher: object) -> None:
        self._dispatcher = dispatcher

    def __getattr__(self, name: str) -> object:
        return getattr(self._dispatcher, name)


def test_dispatchers_with_the_former_name_warn_and_work(engine: Engine) -> None:
    prompt = prompt_of(engine, "ab")
    for dispatcher in (Former(), Forwarding(Former())):
        with pytest.warns(DeprecationWarning, match="now called probe"):
            (result,) = engine.generate(Request([5, 6], expert="auto", dispatcher=dispatcher, max_tokens=1))
        assert (result.expert, result.dispatch.label) == ("a", "former")
    with pytest.warns(DeprecationWarning):
        probe = probe_method(FormerPrompt(Routes(EXPERTS), "x, y or z?"))(prompt)
    assert probe.expert == "a"
    with pytest.warns(DeprecationWarning):
        assert FixedDispatcher("a").look(prompt) is None
    with pytest.warns(DeprecationWarning):
        from zweave.dispatch import Look
    assert isinstance(probe, Look)
    assert probe_method(Forwarding(FixedDispatcher("a"))) is not None
    assert probe_method(object()) is None


def test_a_dispatcher_without_a_probe_is_told(engine: Engine) -> None:
    (result,) = engine.generate(Request([5], expert="auto", dispatcher=object()))
    assert "has no method probe: object" in result.error
