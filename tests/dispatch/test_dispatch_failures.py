"""First passes that fail, wait or are cancelled: the request is told why, and no other is touched."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from zweave import Dispatch, Engine, Request, Result, ZweaveError
from zweave.dispatch import (
    Dispatcher,
    EarlyClassifier,
    FixedDispatcher,
    HiddenDispatcher,
    ReadScores,
    ReadState,
    Routes,
)

TinyEngine = Callable[..., Engine]


def hidden(width: int = 32) -> HiddenDispatcher:
    """Routes to experts that act after the prompt, for models of a width."""
    classifier = EarlyClassifier(("x", "y", "z"), 1, torch.eye(3, width), torch.zeros(3))
    return HiddenDispatcher(classifier, Routes({"x": "tail-a", "y": "tail-b", "z": None}))


def chat(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


class Chosen:
    """A user's dispatcher: does what a function does, on a thread of the engine's choosing."""

    def __init__(self, choose: Callable[[], object], probe: object = None, blocking: bool = True) -> None:
        self._choose, self._probe, self.blocking = choose, probe, blocking
        self.threads: set[int] = set()

    def probe(self, prompt: object) -> object:
        return self._probe

    def choose(self, prompt: object, evidence: object) -> object:
        self.threads.add(threading.get_ident())
        return self._choose()


def raising(error: Exception) -> Callable[[], object]:
    def choose() -> object:
        raise error

    return choose


FAILURES: dict[str, tuple[Callable[[], Dispatcher], str]] = {
    "raises": (lambda: Chosen(raising(ValueError("no\nidea"))), "the dispatcher fails: ValueError: no idea"),
    "raises its own": (lambda: Chosen(raising(ZweaveError("not today"))), "not today"),
    "unknown expert": (lambda: FixedDispatcher("nobody"), "no expert 'nobody'"),
    "unmixable": (lambda: FixedDispatcher({"a": 0.5, "tail-a": 0.5}), "cannot be mixed"),
    "overruns": (lambda: Chosen(lambda: time.sleep(1)), "took longer than 0.2 s"),
    "chooses nonsense": (lambda: Chosen(lambda: "a"), "chooses str"),
    "probes nonsense": (lambda: Chosen(lambda: Dispatch(), probe="up"), "looks at str"),
    "no such layer": (lambda: Chosen(lambda: Dispatch(), probe=ReadState(9)), "from 1 to 2, not 9"),
    "no such token": (
        lambda: Chosen(lambda: Dispatch(), probe=ReadScores([1, 999], [1])),
        "token ids must be",
    ),
    "a long question": (lambda: Chosen(lambda: Dispatch(), probe=ReadScores([1] * 2000, [1])), "shorten it"),
    "a broken classifier": (
        lambda: Chosen(lambda: Dispatch(), probe=ReadScores([1], [1], {"a": 1e30})),
        "not finite",
    ),
    "another width": (lambda: hidden(width=5), "models of width 5"),
}


@pytest.mark.parametrize("policy", ["base", "error"])
@pytest.mark.parametrize(("dispatcher", "words"), FAILURES.values(), ids=FAILURES)
def test_a_dispatcher_that_fails_is_told_and_leaves_others_alone(
    make_engine: TinyEngine, policy: str, dispatcher: Callable[[], Dispatcher], words: str
) -> None:
    engine = make_engine(dispatch_timeout=0.2, on_dispatch_error=policy)
    fields = {"max_tokens": 4, "ignore_eos": True, "logprobs": 5}
    bad = Request(messages=chat("a b c"), expert="auto", dispatcher=dispatcher(), **fields)
    others = [
        Request(messages=chat("a b c"), expert="a", **fields),
        Request(messages=chat("a b c d"), expert="auto", dispatcher=hidden(), **fields),
    ]
    result, *rest = engine.generate([bad, *others])
    assert rest == make_engine().generate(others)
    assert words in result.dispatch.error and "\n" not in result.dispatch.error
    assert (result.expert, result.dispatch.label, result.dispatch.confidence) == (None, None, 0.0)
    if policy == "base":
        (base,) = make_engine().generate(replace(bad, expert=None, dispatcher=None))
        assert replace(result, dispatch=None) == base
    else:
        assert (result.finish_reason, result.error, result.token_ids) == ("error", result.dispatch.error, [])


def test_a_users_dispatcher_blocks_nobody(make_engine: TinyEngine) -> None:
    engine = make_engine()
    gate = threading.Event()

    def choose() -> Dispatch:
        assert gate.wait(20)
        return Dispatch("x", {"x": 1.0}, "a", 0.9)

    for probe in (None, ReadState(1), ReadScores([1, 2, 3], [5])):
        gate.clear()
        slow = Chosen(choose, probe)
        mine = engine.add(Request([5, 6, 7, 8, 9, 10], expert="auto", dispatcher=slow, max_tokens=3))
        assert len(engine.generate(Request([3, 4], max_tokens=8, ignore_eos=True))[0].token_ids) == 8
        gate.set()
        deltas = []
        while engine.has_work:
            deltas += engine.step()
        assert {delta.request_id for delta in deltas} == {mine}
        assert deltas[-1].result.expert == "a"
        assert slow.threads.isdisjoint({threading.get_ident()})
    quick = Chosen(lambda: Dispatch(mixture="b"), blocking=False)
    assert engine.generate(Request([5], expert="auto", dispatcher=quick))[0].expert == "b"
    assert quick.threads == {threading.get_ident()}


@pytest.mark.parametrize("probe", [None, ReadState(1), ReadScores([1, 2, 3, 4, 5, 6, 7], [5])], ids=str)
@pytest.mark.parametrize("steps", range(4))
def test_cancelled_in_the_first_pass(make_engine: TinyEngine, probe: object, steps: int) -> None:
    engine = make_engine(max_batch_tokens=3, max_sequences=3)
    dispatcher = Chosen(lambda: Dispatch(mixture="a"), probe, blocking=False)
    request_id = engine.add(Request(list(range(3, 20)), expert="auto", dispatcher=dispatcher))
    other = engine.add(Request([3, 4, 5], max_tokens=4, ignore_eos=True))
    finished: dict[int, Result] = {}
    for _ in range(steps):
        finished |= {delta.request_id: delta.result for delta in engine.step() if delta.result}
    engine.cancel(request_id)
    while engine.has_work:
        finished |= {delta.request_id: delta.result for delta in engine.step() if delta.result}
    assert finished[request_id].finish_reason == "cancelled"
    assert [finished[other]] == make_engine().generate(Request([3, 4, 5], max_tokens=4, ignore_eos=True))
    assert not engine._first_passes._passes


def test_an_expert_unloaded_between_the_passes_is_unknown(make_engine: TinyEngine) -> None:
    for policy, reason in (("error", "error"), ("base", "length")):
        engine = make_engine(on_dispatch_error=policy, max_batch_tokens=4, max_sequences=4)
        dispatcher = Chosen(lambda: Dispatch(mixture="tail-a"), ReadState(1), blocking=False)
        engine.add(
            Request(list(range(3, 20)), expert="auto", dispatcher=dispatcher, max_tokens=2, ignore_eos=True)
        )
        engine.step()
        engine.unload_expert("tail-a")
        result = None
        while engine.has_work:
            result = next((delta.result for delta in engine.step() if delta.result), result)
        assert result.finish_reason == reason
        assert "no expert 'tail-a'" in result.dispatch.error


def leave() -> object:
    raise SystemExit(3)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_dispatcher_that_wants_to_end_the_program_ends_its_request(
    tiny_engine: TinyEngine, blocking: bool
) -> None:
    engine = tiny_engine()
    auto = Request("ab", expert="auto", dispatcher=Chosen(leave, blocking=blocking), max_tokens=2)
    failed, fine = engine.generate([auto, Request("ab", max_tokens=2, ignore_eos=True)])
    assert failed.error == "the dispatcher fails: SystemExit: 3"
    assert len(fine.token_ids) == 2


def test_a_call_whose_request_is_gone_is_not_made_again(tiny_engine: TinyEngine) -> None:
    """Ctrl-C in a dispatcher ends the request that it was called for, and no later one."""
    engine, calls = tiny_engine(), []

    def interrupted() -> object:
        calls.append(1)
        raise KeyboardInterrupt

    auto = Request("ab", expert="auto", dispatcher=Chosen(interrupted, blocking=False), max_tokens=2)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(auto)
    assert len(engine.generate(Request("ab", max_tokens=2, ignore_eos=True))[0].token_ids) == 2
    assert len(calls) == 1 and not engine.has_work


def test_a_dispatcher_that_asks_its_own_engine_is_told(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine()
    chosen = Chosen(lambda: engine.generate(Request("cd", max_tokens=2)), blocking=False)
    failed = engine.generate(Request("ab", expert="auto", dispatcher=chosen, max_tokens=2))[0]
    assert failed.error is not None and "give it an engine of its own" in failed.error
    assert not engine.has_work and engine.stats().blocks_in_use == 0
