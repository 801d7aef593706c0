"""Engines that look at the batch: within rounding of the others, merges in use, dropped and replaced."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from zweave import Engine, Expert, Request, ZweaveError
from zweave.checkpoint.module_name import layer_of
from zweave.experts import Bank, Mixture
from zweave.kernels import LinearMode
from zweave.planner import MatrixPlan


def serve(engine: Engine, experts: list[Any], tokens: int = 6) -> list[dict[int, float]]:
    """Log-probabilities of each request's first token."""
    requests = [
        Request([5, 6, 7, 8 + i], expert=name, max_tokens=tokens, ignore_eos=True, logprobs=20)
        for i, name in enumerate(experts)
    ]
    return [result.logprobs[0].top for result in engine.generate(requests)]


@pytest.fixture
def engines(tiny_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    return lambda **options: tiny_engine("float32", batch_invariant=False, **options)


def names(engine: Engine) -> list[str]:
    return engine.experts()


def test_the_same_within_rounding(engines: Callable[..., Engine], tiny_engine: Callable[..., Engine]) -> None:
    plain, looking = tiny_engine("float32"), engines()
    choices = [None, *names(plain), None, None]
    for expected, got in zip(serve(plain, choices), serve(looking, choices), strict=True):
        assert got == pytest.approx(expected, abs=1e-3)


def merge_after(engine: Engine, tokens: float) -> None:
    """Lets the merge of a slot begin after this number of tokens."""
    merger = engine._runner._merger
    merger.policy = replace(merger.policy, tokens_worthwhile=tokens)


def merged_engine(engines: Callable[..., Engine], experts: int) -> Engine:
    """An engine with room for so many merged experts, which merges at the first token."""
    size = engines(merge_memory=1)._runner._merger.policy.bytes_each
    engine = engines(merge_memory=size * experts)
    merge_after(engine, 1)
    return engine


def settle(engine: Engine) -> None:
    """Lets the merges that were begun take effect."""
    for merged in engine._runner._merger._merged.values():
        if merged.making is not None:
            merged.making.result()
    engine._runner._merger.settle(torch.zeros(1, dtype=torch.int32))


def merged_slots(engine: Engine) -> set[int]:
    return set((engine.bank.tables.modes == int(LinearMode.MERGED)).nonzero()[:, 1].tolist())


def test_a_hot_expert_is_merged_and_means_the_same(engines: Callable[..., Engine]) -> None:
    engine = merged_engine(engines, 1)
    name = next(
        name for name in names(engine) if layer_of(next(iter(engine.bank.registered(name).read().z))) == 0
    )
    before = serve(engine, [name])
    settle(engine)
    assert len(engine._runner._merger.slots) == 1 and merged_slots(engine) == set(
        engine._runner._merger.slots
    )
    (after,) = serve(engine, [name])
    assert after == pytest.approx(before[0], abs=1e-3)


def test_the_budget_holds_and_the_longest_unused_goes(engines: Callable[..., Engine]) -> None:
    engine = merged_engine(engines, 1)
    first, second = names(engine)[:2]
    serve(engine, [first])
    settle(engine)
    (held,) = engine._runner._merger.slots
    serve(engine, [None], tokens=4)
    serve(engine, [second])
    settle(engine)
    assert len(engine._runner._merger.slots) <= 1 and merged_slots(engine) == set(
        engine._runner._merger.slots
    )
    assert engine._runner._merger.slots != [held]


def test_a_slot_given_to_another_mixture_loses_its_weights(engines: Callable[..., Engine]) -> None:
    size = engines(merge_memory=1)._runner._merger.policy.bytes_each
    engine = engines(merge_memory=size, slots=1)
    merge_after(engine, 1)
    first, second = names(engine)[:2]
    serve(engine, [first])
    settle(engine)
    assert engine._runner._merger.slots == [1]
    merge_after(engine, float("inf"))
    plain = engines(slots=1)
    (got,), (expected,) = serve(engine, [second]), serve(plain, [second])
    assert got == pytest.approx(expected, abs=1e-3)
    assert engine._runner._merger.slots == [] and not merged_slots(engine)


def test_a_slots_tokens_are_those_of_the_mixture_that_holds_it(engines: Callable[..., Engine]) -> None:
    size = engines(merge_memory=1)._runner._merger.policy.bytes_each
    engine = engines(merge_memory=size, slots=1)
    merge_after(engine, 15)
    merger, (first, second) = engine._runner._merger, names(engine)[:2]
    for weight in range(1, 6):
        serve(engine, [{first: weight / 8}])
    # Each had less than 15 tokens, all together more; what is kept does not grow with the mixtures seen.
    assert len(merger._tokens) == 1 and not merger._merged
    serve(engine, [second])
    serve(engine, [second])
    settle(engine)
    assert merger.slots == [1] and not merger._tokens


def test_a_bounded_error_opens_the_cheaper_mode(tiny_engine: Callable[..., Engine]) -> None:
    strict, loose = tiny_engine("float32"), tiny_engine("float32", max_error=0.9)
    name = names(strict)[0]
    serve(strict, [name])
    serve(loose, [name])
    assert (strict.bank.tables.modes[:, 1] == int(LinearMode.FACTORED)).any()
    assert not (loose.bank.tables.modes[:, 1] == int(LinearMode.FACTORED)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_memory": 0}, "max_memory must be"),
        ({"max_memory": 1000}, "max_memory allows"),
        ({"max_error": 1.0}, "max_error must be"),
        ({"max_error": float("nan")}, "max_error must be"),
        ({"batch_invariant": 1}, "batch_invariant must be"),
        ({"merge_memory": -1, "batch_invariant": False}, "merge_memory must be"),
        ({"merge_memory": 10}, "merge_memory needs batch_invariant=False"),
    ],
    ids=str,
)
def test_wrong_settings(tiny_engine: Callable[..., Engine], options: dict, message: str) -> None:
    with pytest.raises(ZweaveError, match=message):
        tiny_engine("float32", **options)


def test_an_expert_beyond_the_kept_components_is_refused() -> None:
    module = "model.layers.0.mlp.up_proj"
    plan = {module: MatrixPlan((40, 60), dense=True, delta_rank=16, factored=False)}
    bank = Bank({module: torch.linspace(2, 1, 40)}, 4, plan=plan)
    z = torch.ones(40)
    z[:16] = 1.1
    bank.load("few", Expert(z={module: z.clone()}))
    z[16] = 1.1
    bank.load("more", Expert(z={module: z}))
    slot = bank.acquire(Mixture.parse("few"))
    assert bank.tables.modes_of(module)[slot] == int(LinearMode.DELTA)
    torch.testing.assert_close(bank.tables.delta_columns(module)[slot], torch.linspace(2, 1, 40)[:16] * 0.1)
    with pytest.raises(ZweaveError, match=r"adapts 17 components of .*keeps 16: allow it more memory"):
        bank.acquire(Mixture.parse("more"))
