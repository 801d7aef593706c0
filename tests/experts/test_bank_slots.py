"""The bank's slots under any order of calls behave like a simple model of them."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zweave.errors import ZweaveError
from zweave.experts import Bank, Expert, Mixture
from zweave.experts.bank import BankFullError

Q0 = "model.layers.0.self_attn.q_proj"
SIGMAS = {Q0: torch.linspace(3, 0.1, 63)}


def expert(seed):
    return Expert(z={Q0: 1 + 0.1 * torch.randn(63, generator=torch.Generator().manual_seed(seed))})


SEEDS = st.integers(0, 4)
NAMES = st.sampled_from(["a", "b", "c"])


def loaded(slots, names):
    """A bank with one expert a name, of seed 0, 1, ..."""
    made = Bank(SIGMAS, slots)
    for seed, name in enumerate(names):
        made.load(name, expert(seed))
    return made


def test_full_bank_says_so_and_waits():
    made = loaded(3, "abc")
    a, b = made.acquire(Mixture.parse("a")), made.acquire(Mixture.parse("b"))
    assert made.try_acquire(Mixture.parse("c")) is None
    with pytest.raises(BankFullError, match="all 2 expert slots are in use"):
        made.acquire(Mixture.parse("c"))
    assert made.acquire(Mixture.parse("a")) == a
    made.release(a)
    assert made.try_acquire(Mixture.parse("c")) is None, "a is still held once"
    made.release(a)
    assert made.acquire(Mixture.parse("c")) == a
    torch.testing.assert_close(made.tables.columns(Q0)[b], SIGMAS[Q0] * expert(1).z[Q0], rtol=0, atol=0)


def test_release_without_acquire_is_an_error():
    made = loaded(3, "a")
    slot = made.acquire(Mixture.parse("a"))
    made.release(slot)
    with pytest.raises(RuntimeError, match="nobody holds it"):
        made.release(slot)


def test_the_longest_unused_row_goes_first():
    made, slots = loaded(4, "abcd"), {}
    for name in "abc":
        slots[name] = made.acquire(Mixture.parse(name))
    for name in "bac":
        made.release(slots[name])
    made.release(made.acquire(Mixture.parse("b")))
    assert made.acquire(Mixture.parse("d")) == slots["a"]
    assert made.acquire(Mixture.parse("a")) == slots["c"]
    assert made.acquire(Mixture.parse("b")) == slots["b"]


class BankMachine(RuleBasedStateMachine):
    """A bank of three expert slots against a dictionary, a dictionary of pins and a list of idle digests."""

    @initialize()
    def start(self):
        self.bank = Bank(SIGMAS, 4)
        self.names = {}
        self.held = []
        self.idle = []

    @rule(name=NAMES, seed=SEEDS)
    def load(self, name, seed):
        self.bank.load(name, expert(seed))
        self.names[name] = seed

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def unload(self, data):
        name = data.draw(st.sampled_from(sorted(self.names)))
        self.bank.unload(name)
        del self.names[name]

    @rule(name=NAMES, other=NAMES, alpha=st.sampled_from([0.0, 0.5, 1.0]))
    def acquire(self, name, other, alpha):
        mixture = Mixture.parse({name: alpha, other: 1.0 - alpha} if name != other else name)
        if name not in self.names or other not in self.names:
            with pytest.raises(ZweaveError, match="no expert"):
                self.bank.try_acquire(mixture)
            return
        weights = {}
        for part, weight in ((name, alpha), (other, 1.0 - alpha)):
            weights[self.names[part]] = weights.get(self.names[part], 0.0) + weight
        key = tuple(sorted(weights.items()))
        pinned = {key for key, _ in self.held}
        slot = self.bank.try_acquire(mixture)
        if key not in pinned and len(pinned) == 3:
            assert slot is None
            return
        assert slot is not None
        cached = key in pinned or key in self.idle
        if key in self.idle:
            self.idle.remove(key)
        elif not cached and len(pinned) + len(self.idle) == 3:
            self.idle.pop(0)
        self.held.append((key, slot))

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def use_and_leave(self, data):
        before = len(self.held)
        name = data.draw(st.sampled_from(sorted(self.names)))
        self.acquire(name, name, 1.0)
        if len(self.held) > before:
            self._release(before)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        self._release(data.draw(st.integers(0, len(self.held) - 1)))

    def _release(self, index):
        key, slot = self.held.pop(index)
        self.bank.release(slot)
        if key not in {key for key, _ in self.held}:
            self.idle.append(key)

    @invariant()
    def rows_are_right(self):
        slots = {}
        for key, slot in self.held:
            assert slot > 0 and slots.setdefault(key, slot) == slot
            z = sum(weight * expert(seed).z[Q0].double() for seed, weight in key)
            torch.testing.assert_close(
                self.bank.tables.columns(Q0)[slot], (SIGMAS[Q0] * z).float(), rtol=1e-6, atol=1e-9
            )
        assert len(set(slots.values())) == len(slots)
        torch.testing.assert_close(self.bank.tables.columns(Q0)[0], SIGMAS[Q0], rtol=0, atol=0)
        assert sorted(self.bank.experts()) == sorted(self.names)

    @invariant()
    def the_longest_unused_went_first(self):
        # The bank's own list, as nothing else tells a cached row from one that was written again.
        idle = [self.bank._digest_of[slot] for slot in self.bank._unreferenced]
        assert len(idle) == len(self.idle)
        assert [self._digest(key) for key in self.idle] == idle

    def _digest(self, key):
        made = Bank(SIGMAS, 2)
        for seed, _ in key:
            made.load(f"s{seed}", expert(seed))
        return made.resolve(Mixture.parse({f"s{seed}": weight for seed, weight in key})).digest


TestBankMachine = BankMachine.TestCase
TestBankMachine.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
