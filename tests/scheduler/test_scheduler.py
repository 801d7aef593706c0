import random
from dataclasses import dataclass

import pytest
import torch

from zweave import Request, ZweaveError
from zweave.checkpoint import ModelConfig
from zweave.kv_cache import KVCache
from zweave.scheduler import BlockManager, Scheduler, Sequence
from zweave.text.detokenizer import StopChecker

BLOCK = 4


class CountedSlots:
    """A bank that only counts: so many experts, named by strings, may be pinned at once."""

    first_layers = ()

    def __init__(self, slots: int) -> None:
        self.free = slots
        self.missing: set[str] = set()

    def try_acquire(self, mixture: str | None) -> int | None:
        if mixture is None:
            return 0
        if mixture in self.missing:
            raise ZweaveError("that expert is gone")
        if self.free == 0:
            return None
        self.free -= 1
        return 1

    def release(self, slot: int) -> None:
        self.free += slot > 0


class NoText:
    def add(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


@pytest.fixture
def cache(tiny_config: ModelConfig) -> KVCache:
    return KVCache(tiny_config, 8, BLOCK, torch.float32, torch.device("cpu"))


def scheduler_of(cache: KVCache, bank: CountedSlots, **limits: int) -> Scheduler:
    return Scheduler(BlockManager(cache, share=False), bank, **limits)


def sequence(
    request_id: int, prompt: int, generated: int = 1, expert: str | None = None, priority: int = 0
) -> Sequence:
    return Sequence(
        request_id=request_id,
        request=Request([0], expert=expert, priority=priority),
        mixture=expert,
        token_ids=[0] * prompt,
        adapted_from=0,
        max_length=prompt + generated,
        text=StopChecker(NoText(), ()),
    )


def finish_step(scheduler: Scheduler) -> dict[int, int]:
    """Runs a step as the engine does; returns how many tokens each request computed."""
    chunks, failed = scheduler.schedule()
    assert not failed
    counts = {chunk.sequence.request_id: chunk.count for chunk in chunks}
    complete = [chunk.sequence for chunk in chunks if chunk.complete]
    for chunk in chunks:
        seq = chunk.sequence
        assert len(seq.kv.block_table) * BLOCK >= seq.kv.num_computed_tokens + chunk.count
        seq.advance(chunk.count)
    for seq in complete:
        if seq.append(0, None, ())[1] is not None:
            scheduler.remove(seq)
    return counts


def test_a_long_prompt_is_cut_to_the_budget_and_lets_others_decode(cache: KVCache) -> None:
    scheduler = scheduler_of(cache, CountedSlots(1), max_sequences=4, max_batch_tokens=8)
    scheduler.add(sequence(0, prompt=2, generated=3))
    assert finish_step(scheduler) == {0: 2}
    scheduler.add(sequence(1, prompt=12))
    assert finish_step(scheduler) == {0: 1, 1: 7}
    assert finish_step(scheduler) == {0: 1, 1: 5}
    assert len(scheduler) == 0
    assert cache.num_free == cache.num_blocks


def test_requests_beyond_max_sequences_wait_in_order(cache: KVCache) -> None:
    scheduler = scheduler_of(cache, CountedSlots(1), max_sequences=2, max_batch_tokens=16)
    for i in range(3):
        scheduler.add(sequence(i, prompt=1, generated=1 + i))
    assert finish_step(scheduler) == {0: 1, 1: 1}
    assert finish_step(scheduler) == {1: 1, 2: 1}


def test_requests_of_a_lower_number_of_priority_are_admitted_first(cache: KVCache) -> None:
    scheduler = scheduler_of(cache, CountedSlots(1), max_sequences=1, max_batch_tokens=16)
    for i, priority in enumerate((3, 0, 3, -1, 0)):
        scheduler.add(sequence(i, prompt=1, priority=priority))
    assert [request_id for _ in range(5) for request_id in finish_step(scheduler)] == [3, 1, 4, 0, 2]


def test_the_highest_number_of_priority_is_preempted_though_it_came_first(cache: KVCache) -> None:
    scheduler = scheduler_of(cache, CountedSlots(2), max_sequences=4, max_batch_tokens=64)
    late, early = sequence(0, prompt=15, generated=8, priority=1), sequence(1, prompt=15, generated=8)
    scheduler.add(late)
    scheduler.add(early)
    scheduler.add(sequence(2, prompt=3, priority=2))
    order = []
    while len(scheduler):
        order += [request_id for request_id, count in finish_step(scheduler).items() if count > 1]
    assert scheduler.preemptions == 1
    # What was preempted waits before what came later and goes later.
    assert order == [1, 0, 0, 2]
    assert len(late.generated) == len(early.generated) == 8


def test_a_request_whose_expert_has_no_slot_waits_for_one(cache: KVCache) -> None:
    bank = CountedSlots(1)
    scheduler = scheduler_of(cache, bank, max_sequences=4, max_batch_tokens=16)
    scheduler.add(sequence(0, prompt=1, expert="a"))
    scheduler.add(sequence(1, prompt=1, expert="b"))
    assert finish_step(scheduler) == {0: 1}
    assert finish_step(scheduler) == {1: 1}
    assert bank.free == 1


def test_an_expert_that_vanished_fails_its_request_alone(cache: KVCache) -> None:
    bank = CountedSlots(2)
    bank.missing.add("gone")
    scheduler = scheduler_of(cache, bank, max_sequences=4, max_batch_tokens=16)
    scheduler.add(sequence(0, prompt=1, expert="gone"))
    scheduler.add(sequence(1, prompt=1, expert="here"))
    chunks, failed = scheduler.schedule()
    assert [(seq.request_id, reason) for seq, reason in failed] == [(0, "that expert is gone")]
    assert [chunk.sequence.request_id for chunk in chunks] == [1]


def test_the_latest_arrival_is_preempted_and_comes_back(cache: KVCache) -> None:
    bank = CountedSlots(2)
    scheduler = scheduler_of(cache, bank, max_sequences=4, max_batch_tokens=64)
    first = sequence(0, prompt=15, generated=8, expert="a")
    second = sequence(1, prompt=15, generated=8, expert="b")
    scheduler.add(first)
    scheduler.add(second)
    computed: dict[int, int] = {0: 0, 1: 0}
    for _ in range(100):
        if not len(scheduler):
            break
        for request_id, count in finish_step(scheduler).items():
            computed[request_id] += count
    assert scheduler.preemptions == 1
    assert computed[0] == 22, "the first arrival computes each token once"
    assert computed[1] > 22
    assert len(first.generated) == len(second.generated) == 8
    assert cache.num_free == cache.num_blocks
    assert bank.free == 2


@dataclass(frozen=True)
class Chosen:
    """What a dispatcher chose: a mixture that changes all layers."""

    parts: tuple[str, ...] = ("a",)
    first_layer: int = 0


def test_a_preempted_request_holds_no_slot_that_an_earlier_one_waits_for(cache: KVCache) -> None:
    bank = CountedSlots(1)
    scheduler = scheduler_of(cache, bank, max_sequences=4, max_batch_tokens=3)
    dispatched, later = sequence(0, prompt=20), sequence(1, prompt=8, generated=16, expert="b")
    scheduler.add(later)
    for _ in range(3):
        finish_step(scheduler)
    scheduler.add(dispatched)
    for _ in range(9):
        finish_step(scheduler)
    assert scheduler.preemptions == 1
    assert not scheduler.bind(dispatched, Chosen(), adapted_from=0), "other keys and values: it starts again"
    for _ in range(30):
        finish_step(scheduler)
    assert len(dispatched.generated) == 1
    assert len(later.generated) == 16
    assert bank.free == 1


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_ends_and_gives_everything_back(cache: KVCache, seed: int) -> None:
    rng = random.Random(seed)
    bank = CountedSlots(rng.randint(1, 3))
    slots = bank.free
    scheduler = scheduler_of(
        cache, bank, max_sequences=rng.randint(1, 6), max_batch_tokens=rng.randint(6, 20)
    )
    alive: list[Sequence] = []
    for request_id in range(40):
        prompt = rng.randint(1, 24)
        alive.append(sequence(request_id, prompt, rng.randint(1, 32 - prompt), rng.choice([None, "a", "b"])))
        scheduler.add(alive[-1])
        for _ in range(rng.randint(0, 6)):
            finish_step(scheduler)
        if rng.random() < 0.2:
            victim = rng.choice(alive)
            if len(victim.token_ids) < victim.max_length:
                scheduler.remove(victim)
                alive.remove(victim)
    for _ in range(5000):
        if not len(scheduler):
            break
        finish_step(scheduler)
    assert all(len(seq.token_ids) == seq.max_length for seq in alive)
    assert cache.num_free == cache.num_blocks
    assert bank.free == slots
