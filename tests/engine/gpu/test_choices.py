"""Experts that the device chooses: what the CPU engine chooses and answers, and nobody waits for it."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from zweave.dispatch import EarlyClassifier, HiddenDispatcher, Routes
from zweave.dispatch.open_set import OpenSet
from zweave.dispatch.routed_classifier import RoutedClassifier
from zweave.dispatcher import Dispatcher
from zweave.engine import Engine
from zweave.engine.gpu import choosing
from zweave.engine.gpu.gpu_runner import GpuRunner
from zweave.kv_cache.prefix_key import KEY_BYTES
from zweave.kv_cache.prefix_tree import Node
from zweave.model.gpu_batch import GpuBatch
from zweave.request import Request, Result, Sampling
from zweave.scheduler import Scheduler
from zweave.scheduler.choice import ChoiceSlots
from zweave.text import PromptTemplate

TinyEngine = Callable[..., Engine]
# Blocks, rows and slots for a few requests at once, and prompts in several chunks.
TIGHT = {"kv_tokens": 72, "max_sequences": 7, "max_batch_tokens": 17, "slots": 3}
ROOMY = {"kv_tokens": 4096}
SEEDS = range(4)
NAMED: list[Any] = [None, "b", "late", "tail-a", {"a": 0.5, "b": 0.25}]
ROUTES: dict[str, Any] = {"x": "tail-a", "y": "tail-b", "z": None}


def classifier(layer: int = 1, seed: int = 5) -> EarlyClassifier:
    """Random, and far enough from even that prompts fall into all of its classes."""
    weight = 3 * torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    return EarlyClassifier(("x", "y", "z"), layer, weight - weight.mean(), torch.zeros(3))


def hidden(routes: dict[str, Any] = ROUTES, layer: int = 1, **fields: Any) -> HiddenDispatcher:
    return HiddenDispatcher(classifier(layer), Routes(routes, **fields))


@pytest.fixture
def make_engine(tiny_engine: TinyEngine) -> TinyEngine:
    """`tiny_engine` with "tail-a" and "tail-b" of scope after_prompt; "tail-words" has a template, too."""

    def make(**options: Any) -> Engine:
        engine = tiny_engine(**options)
        for name in ("a", "b"):
            expert = engine.bank.registered(name).read()
            engine.load_expert(f"tail-{name}", replace(expert, scope="after_prompt"))
        words = PromptTemplate("Film: {text}\nGood?", "It is", max_tokens=3)
        expert = engine.bank.registered("tail-a").read()
        engine.load_expert("tail-words", replace(expert, prompt_template=words))
        return engine

    return make


def traffic(count: int, seed: int, dispatcher: Dispatcher | None = None) -> list[Request]:
    """Prompts of which many share beginnings, most of unknown expert."""
    random, dispatcher = Random(seed), dispatcher or hidden()
    trunks = [[random.randrange(3, 90) for _ in range(60)] for _ in range(8)]
    requests = []
    for index in range(count):
        trunk, tail = random.choice(trunks), random.randrange(6)
        prompt = trunk[: random.randrange(40)] + [random.randrange(3, 90) for _ in range(tail)]
        expert = random.choice(["auto", "auto", "auto", *NAMED])
        requests.append(
            Request(
                prompt or [5],
                expert=expert,
                dispatcher=dispatcher if expert == "auto" else None,
                max_tokens=random.choice([1, 2, 5, 9]),
                sampling=Sampling(temperature=random.choice([0.0, 0.0, 0.7]), seed=index),
                stop_token_ids=random.choice([(), tuple(range(3, 90, 3))]),
                logprobs=random.choice([None, None, 3]),
            )
        )
    return requests


def essence(result: Result) -> tuple[object, ...]:
    """What a rounding error leaves alone."""
    dispatch = result.dispatch
    chosen = None if dispatch is None else (dispatch.label, dispatch.error)
    return result.token_ids, result.text, result.finish_reason, chosen


def differ(given: Result, wanted: Result) -> bool:
    if "cancelled" in (given.finish_reason, wanted.finish_reason):
        known = min(len(given.token_ids), len(wanted.token_ids))
        return given.token_ids[:known] != wanted.token_ids[:known]
    return essence(given) != essence(wanted)


def drive(engine: Engine, seed: int) -> dict[int, Result]:
    """Results of requests that arrive and are cancelled while others run."""
    random = Random(seed)
    waiting, results = traffic(30, seed), {}
    while waiting or engine.has_work:
        for _ in range(min(random.randrange(4), len(waiting))):
            engine.add(waiting.pop())
        if random.random() < 0.1:
            engine.cancel(random.randrange(30))
        for delta in engine.step():
            if delta.result is not None:
                results[delta.request_id] = delta.result
    assert engine.stats().blocks_in_use == 0
    return results


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The slots that devices have chosen."""
    slots: list[int] = []
    settle = Scheduler.settle

    def noted(self: Scheduler, sequence: Any, mixture: Any, adapted_from: int, slot: int) -> None:
        slots.append(slot)
        settle(self, sequence, mixture, adapted_from, slot)

    monkeypatch.setattr(Scheduler, "settle", noted)
    return slots


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(s, marks=pytest.mark.exhaustive) for s in (0, 2, 3, 5, 6))]
)
def test_a_long_trace(seed: int, make_engine: TinyEngine, settled: list[int]) -> None:
    """Arrivals, cancellations, preemption, prompts in chunks, cached beginnings, and more experts than slots."""
    engines = [make_engine(**TIGHT), make_engine(device="reference", **TIGHT)]
    wanted, given = (drive(engine, seed) for engine in engines)
    assert given.keys() == wanted.keys()
    assert not [key for key, result in given.items() if differ(result, wanted[key])]
    assert len(settled) > 4 and len({*settled}) > 1
    assert all(engine.stats().preemptions > 0 for engine in engines)
    assert not engines[1].bank._ref_counts


def cached_keys(engine: Engine) -> set[tuple[tuple[int, str], ...]]:
    """Token and mixture of each position of each path of the prefix tree."""
    names = {number: digest for (_, digest), number in engine._blocks._lookup._keys._namespaces.items()}
    found = set()

    def walk(node: Node, above: bytes) -> None:
        key = above + node.key
        positions = [int.from_bytes(key[i : i + KEY_BYTES], "little") for i in range(0, len(key), KEY_BYTES)]
        found.add(tuple((p & 0xFFFFFF, names[p >> 24]) for p in positions))
        for child in node.children:
            walk(child, key)

    walk(engine._blocks._tree._root, b"")
    return found


@pytest.mark.parametrize("options", [{}, {"max_batch_tokens": 19, "max_sequences": 7}], ids=str)
@pytest.mark.parametrize("layer", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_what_is_cached(
    layer: int, options: dict[str, int], make_engine: TinyEngine, settled: list[int]
) -> None:
    """The same keys as on a CPU, and other requests find what is right under them."""
    here, there = make_engine(**ROOMY, **options), make_engine(device="reference", **ROOMY, **options)
    requests = traffic(20, 9, hidden(layer=layer))
    for _ in range(2):
        wanted, given = here.generate(requests), there.generate(requests)
        assert [essence(result) for result in given] == [essence(result) for result in wanted]
        for one, other in zip(given, wanted, strict=True):
            if one.dispatch is not None and other.dispatch is not None:
                assert one.dispatch.probabilities == pytest.approx(other.dispatch.probabilities, abs=1e-3)
        assert cached_keys(there) == cached_keys(here)
        requests = [
            replace(request, prompt=[*(request.prompt or ()), *result.token_ids, 7, 8, 9])
            for request, result in zip(requests, wanted, strict=True)
        ]
    assert [(r.reuse, r.reused_tokens) for r in given] == [(r.reuse, r.reused_tokens) for r in wanted]
    assert sum(result.reused_tokens for result in given) > 0
    assert len(settled) > 10


def test_a_chunk_that_is_pooled_again_adds_nothing(make_engine: TinyEngine) -> None:
    """As when a step fails on a device that has pooled already."""
    engine = make_engine(device="reference")
    prompt = list(range(3, 40))
    asked = Request(prompt, expert="auto", dispatcher=hidden(), max_tokens=1)
    pool = choosing.ExpertChooser.pool
    wanted = engine.generate(asked)[0].dispatch

    def twice(self: Any, *args: Any) -> None:
        pool(self, *args)
        pool(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing.ExpertChooser, "pool", twice)
        for max_batch_tokens in (64, 7):
            again = make_engine(device="reference", max_batch_tokens=max_batch_tokens, max_sequences=7)
            given = again.generate(asked)[0].dispatch
            assert given is not None and wanted is not None
            assert given.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)


def test_it_takes_no_more_steps_than_a_named_one(
    make_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch, settled: list[int]
) -> None:
    launches = []
    launch = GpuRunner.launch

    def counted(self: GpuRunner, chunks: Any) -> Any:
        launches[-1] += 1
        return launch(self, chunks)

    monkeypatch.setattr(GpuRunner, "launch", counted)
    engine = make_engine(device="reference", prefix_cache=False)
    asked = Request(list(range(3, 40)), expert="auto", dispatcher=hidden(), max_tokens=6, ignore_eos=True)
    named = [replace(asked, expert=expert, dispatcher=None) for expert in ("tail-a", "tail-b", None)]
    for request in (asked, *named):
        launches.append(0)
        engine.generate(request)
    assert launches == [6, 6, 6, 6]
    assert len(settled) == 1


class Contrary(HiddenDispatcher):
    def choose(self, prompt: Any, evidence: Any) -> Any:
        return replace(super().choose(prompt, evidence), mixture="tail-b")


def open_set() -> HiddenDispatcher:
    known = classifier()
    states = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    fitted = OpenSet.fit(states, torch.tensor([0, 1] * 4), states)
    labels = ("x", "y", "other")
    return HiddenDispatcher(replace(known, labels=labels, open_set=fitted), Routes({"x": "tail-a"}))


ON_DEVICE: dict[str, tuple[Callable[[], HiddenDispatcher], dict[str, Any], dict[str, Any]]] = {
    "plain": (hidden, {}, {}),
    "a label without a route": (lambda: hidden({"x": "tail-a"}), {}, {}),
    "a threshold": (lambda: hidden(threshold=0.9), {}, {}),
    "an open set": (open_set, {}, {}),
    "mixtures": (lambda: hidden(ROUTES | {"z": {"tail-a": 0.5, "tail-b": 0.5}}), {}, {}),
    "whole prompts": (lambda: hidden(ROUTES | {"x": "tail-words"}), {}, {}),
}
ON_HOST: dict[str, tuple[Callable[[], HiddenDispatcher], dict[str, Any], dict[str, Any]]] = {
    "always": (lambda: hidden(ROUTES | {"x": "a"}), {}, {}),
    "soft": (lambda: hidden(soft=True), {}, {}),
    "few slots": (hidden, {"slots": 1}, {}),
    "approximate": (hidden, {}, {"kv_reuse": "approximate"}),
    "a choice of its own": (lambda: Contrary(classifier(), Routes(ROUTES)), {}, {}),
    "own words": (lambda: hidden(ROUTES | {"x": "tail-words"}), {}, {"prompt": "a film about a dog"}),
    "nothing before the expert": (hidden, {}, {"prompt": [5]}),
    "another width": (lambda: HiddenDispatcher(WIDE, Routes(ROUTES)), {}, {}),
    "no such expert": (lambda: hidden(ROUTES | {"x": "nobody"}), {}, {}),
}
WIDE = EarlyClassifier(("x", "y", "z"), 1, torch.zeros(3, 33), torch.zeros(3))


@pytest.mark.parametrize("name", [*ON_DEVICE, *ON_HOST])
def test_where_the_choice_is_made(name: str, make_engine: TinyEngine, settled: list[int]) -> None:
    make, options, fields = (ON_DEVICE | ON_HOST)[name]
    prompts: list[Any] = [[1, 5, 9, 40, 41, 7, 3], [8] * 21, list(range(3, 60)), [60, 61]]
    dispatcher = make()
    requests = [
        Request(**{"prompt": p, "expert": "auto", "dispatcher": dispatcher, "max_tokens": 4, **fields})
        for p in prompts
    ]
    engines = make_engine(**options), make_engine(device="reference", **options)
    wanted, given = (engine.generate(requests) for engine in engines)
    assert [essence(result) for result in given] == [essence(result) for result in wanted]
    assert len(settled) == (len(requests) if name in ON_DEVICE else 0)
    assert not engines[1].bank._ref_counts


class NoNumbers(EarlyClassifier):
    def probabilities(self, states: torch.Tensor) -> torch.Tensor:
        return super().probabilities(states) * torch.nan


@pytest.mark.parametrize("policy", ["error", "base"])
def test_probabilities_that_are_no_numbers(policy: str, make_engine: TinyEngine, settled: list[int]) -> None:
    known = classifier()
    broken = NoNumbers(known.labels, known.layer, known.weight, known.bias)
    asked = Request(
        [8] * 21, expert="auto", dispatcher=HiddenDispatcher(broken, Routes(ROUTES)), max_tokens=4
    )
    wanted, given = (
        make_engine(device=device, on_dispatch_error=policy).generate(asked, on_error="result")[0]
        for device in ("cpu", "reference")
    )
    assert settled == [0]
    assert given.error == wanted.error and essence(given) == essence(wanted)


class Refusing(RoutedClassifier):
    def dispatch(self, probabilities: Any) -> Any:
        raise ValueError("no")


class Crashing(RoutedClassifier):
    def probabilities(self, states: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")


class Mute(RoutedClassifier):
    def probabilities(self, states: torch.Tensor) -> torch.Tensor:
        return states


@pytest.mark.parametrize("kind", [Refusing, Crashing, Mute])
def test_a_classifier_that_fails_ends_its_own_request(
    kind: type[RoutedClassifier], make_engine: TinyEngine
) -> None:
    broken = hidden()
    broken._probe = replace(broken._probe, classifier=kind(classifier(), Routes(ROUTES)))
    asked = [Request([8] * 21, expert="auto", dispatcher=d, max_tokens=4) for d in (broken, hidden())]
    failed, answered = make_engine(device="reference").generate(asked, on_error="result")
    assert failed.error is not None and ("no" in failed.error or "float32" in failed.error)
    assert answered.error is None and len(answered.token_ids) == 4


def slots_of_another_row(patch: pytest.MonkeyPatch) -> None:
    """The slot is read where the device writes another sequence's."""
    whole = GpuBatch.with_slots

    def other(self: GpuBatch, slot_of: torch.Tensor) -> GpuBatch:
        bank, places = slot_of[:-7], slot_of[-7:]
        return whole(self, torch.cat([bank, places.roll(1)]))

    patch.setattr(GpuBatch, "with_slots", other)


def candidates_released_early(patch: pytest.MonkeyPatch) -> None:
    """Others may get the slots of the candidates while the choice is in flight."""
    acquire, release = ChoiceSlots.try_acquire, ChoiceSlots.release

    def early(self: ChoiceSlots, choice: Any) -> int | None:
        found = acquire(self, choice)
        if found is not None:
            self._release_slots({*choice.slots})
        return found

    def late(self: ChoiceSlots, choice: Any, kept: int = 0) -> None:
        for slot in {*choice.slots} - {0}:
            self._bank._ref_counts[slot] = self._bank._ref_counts.get(slot, 0) + 1
            self._bank._unreferenced.pop(slot, None)
        release(self, choice, kept)

    patch.setattr(ChoiceSlots, "try_acquire", early)
    patch.setattr(ChoiceSlots, "release", late)


def cached_states_left_out(patch: pytest.MonkeyPatch) -> None:
    """The mean lacks the states of the tokens that were found in the prefix cache."""
    patch.setattr(choosing._PooledChunk, "needs_seed", property(lambda part: False))


@pytest.mark.parametrize(
    "mistake",
    [slots_of_another_row, candidates_released_early, cached_states_left_out],
    ids=lambda mistake: mistake.__name__,
)
def test_planted_mistakes_show(
    mistake: Callable[[pytest.MonkeyPatch], None], make_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = TIGHT | {"slots": 2}
    for seed in SEEDS:
        wanted = drive(make_engine(**tight), seed)
        with monkeypatch.context() as patch:
            mistake(patch)
            try:
                given = drive(make_engine(device="reference", **tight), seed)
            except IndexError:
                return
        if any(differ(result, wanted[key]) for key, result in given.items()):
            return
    pytest.fail("no trace shows it")


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_mixture_that_is_set_by_hand_ends_the_choice(steps: int, make_engine: TinyEngine) -> None:
    """Before the request runs, and in the midst of its prompt."""
    engine = make_engine(device="reference", **TIGHT)
    request = Request(list(range(3, 60)), expert="auto", dispatcher=hidden(), max_tokens=6, ignore_eos=True)
    request_id = engine.add(request)
    for _ in range(steps):
        assert not engine.step()
    engine.rescale(request_id, "b")
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    wanted = make_engine().generate(replace(request, expert="b", dispatcher=None))[0]
    assert deltas[-1].result is not None and deltas[-1].result.token_ids == wanted.token_ids
    assert not engine._scheduler._slots._choices._num_in_flight
