"""Blocks under random traffic: each position's place in the cache holds what a fresh computation would put there.

A stand-in for the model writes a fingerprint of everything that a position's keys and values depend on.
"""

import random
from collections import Counter
from dataclasses import replace
from zlib import crc32

import pytest
import torch

from zweave import Request
from zweave.checkpoint import ModelConfig
from zweave.experts.resolved_mixture import ResolvedMixture
from zweave.kernels.layout.kv_layout import read_kv, store_kv
from zweave.kv_cache import KVCache
from zweave.scheduler import BlockManager, Scheduler, Sequence
from zweave.text.detokenizer import StopChecker

BLOCK = 4


class AllSlots:
    """A bank with a slot for everyone, and experts that act from layer 1 on."""

    first_layers = (1,)

    def try_acquire(self, mixture: ResolvedMixture) -> int:
        return 0

    def release(self, slot: int) -> None:
        pass


class NoText:
    def add(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class Simulation:
    """A scheduler, its blocks, and steps that check what the cache holds."""

    def __init__(self, config: ModelConfig, blocks: int, **limits: int) -> None:
        self.heads = config.num_kv_heads, config.head_dim
        self.cache = KVCache(config, blocks, BLOCK, torch.float32, torch.device("cpu"))
        self.blocks = BlockManager(self.cache)
        self.scheduler = Scheduler(self.blocks, AllSlots(), **limits)
        self.ids = 0
        self.alive: list[Sequence] = []
        self.computed: Counter[int] = Counter()
        self.resumed: Counter[int] = Counter()

    def add(
        self,
        tokens: list[int],
        new: int,
        digest: str = "base",
        adapted_from: int = 0,
        salt: str | None = None,
        seed: int = 0,
    ) -> Sequence:
        scope = "after_prompt" if adapted_from else "always"
        sequence = Sequence(
            request_id=self.ids,
            request=Request(tokens, salt=salt),
            mixture=mixture(digest, scope),
            token_ids=list(tokens),
            adapted_from=adapted_from,
            max_length=len(tokens) + new,
            text=StopChecker(NoText(), ()),
        )
        sequence.seed = seed
        self.ids += 1
        self.alive.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> dict[int, int]:
        chunks, failed = self.scheduler.schedule()
        assert not failed
        assert len(chunks) > 0 or not self.alive
        self.check_users(list(dict.fromkeys(chunk.sequence for chunk in chunks)))
        for chunk in chunks:
            sequence = chunk.sequence
            states = [[fingerprint(sequence, p, "state 1")] for p in range(chunk.start, chunk.stop)]
            if chunk.entry_states is not None:
                assert chunk.entry_states.tolist() == states
                self.resumed[sequence.request_id] += chunk.count
            for position in range(chunk.start, chunk.stop):
                self.write(sequence, position, chunk.entry_layer)
            for layer in chunk.cache_layers:
                sequence.cache_states(layer, chunk.start, torch.tensor(states, dtype=torch.float32))
            complete = chunk.complete
            sequence.advance(chunk.count)
            self.computed[sequence.request_id] += chunk.count
            if complete:
                self.check_content(sequence)
                if sequence.append(self.draw(sequence), None, ())[1] is not None:
                    self.end(sequence)
        counts: Counter[int] = Counter()
        for chunk in chunks:
            counts[chunk.sequence.request_id] += chunk.count
        return dict(counts)

    def end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.alive.remove(sequence)

    def run(self) -> None:
        for _ in range(20_000):
            if not self.alive:
                break
            self.step()
        assert not self.alive
        assert self.blocks.num_in_use == 0
        assert self.blocks.num_cached + self.blocks.num_free == self.cache.num_blocks

    def place(self, sequence: Sequence, position: int) -> tuple[int, int]:
        return sequence.kv.block_table[position // BLOCK], position % BLOCK

    def write(self, sequence: Sequence, position: int, first: int) -> None:
        block, offset = self.place(sequence, position)
        for index, layer in enumerate(self.cache.layers[first:], first):
            k = torch.full((1, *self.heads), fingerprint(sequence, position, index), dtype=torch.float32)
            store_kv(k, -k, layer.k, layer.v, torch.tensor([block]), torch.tensor([offset]))

    def check_content(self, sequence: Sequence) -> None:
        for position in range(len(sequence.token_ids)):
            block, offset = self.place(sequence, position)
            for index, layer in enumerate(self.cache.layers):
                wanted = fingerprint(sequence, position, index)
                at = torch.tensor([block]), torch.tensor([offset])
                k, v = read_kv(layer.k, layer.v, *at, self.heads[1])
                assert (k == wanted).all() and (v == -wanted).all()

    def draw(self, sequence: Sequence) -> int:
        """Few tokens, so that answers under other seeds begin alike too."""
        return (fingerprint(sequence, len(sequence.token_ids) - 1, 0) >> 4 * (sequence.seed % 2)) % 3

    def check_users(self, sequences: list[Sequence]) -> None:
        """A block that two sequences read is a whole node of both, so nobody writes to it."""
        users = Counter(block for sequence in sequences for block in sequence.kv.block_table)
        for sequence in sequences:
            kv = sequence.kv
            shared = {node.block for node in kv.nodes if len(node.key) == 8 * BLOCK}
            assert all(users[block] == 1 or block in shared for block in kv.block_table)
            assert [node.block for node in kv.nodes] == kv.block_table[: len(kv.nodes)]
            assert kv.num_computed_tokens // BLOCK >= len(shared)


def mixture(digest: str, scope: str) -> ResolvedMixture:
    """The base has no parts and adapts no layer; digests that end in "late" adapt the upper of two layers."""
    first_layer = 2 if digest == "base" else int(digest.endswith("late"))
    return ResolvedMixture(digest, scope, first_layer, () if digest == "base" else ((None, (1.0,)),))


def fingerprint(sequence: Sequence, position: int, layer: int | str) -> int:
    """24 bits, which float32 holds, of the tokens up to a position and what computes each of them."""
    mixture, below = sequence.mixture, 0 if layer == "state 1" else layer
    digest = "base" if below < mixture.first_layer else mixture.digest
    owners = ["base" if i < sequence.adapted_from else digest for i in range(position + 1)]
    text = f"{layer} {sequence.request.salt} {owners} {sequence.token_ids[: position + 1]}"
    return crc32(text.encode()) >> 8


def random_prompt(rng: random.Random) -> list[int]:
    """Prompts that often begin alike."""
    length = rng.randint(1, 24)
    start = rng.choice(([0] * 20, [1, 2] * 10, [0, 0, 0, 0, 0, 1, 2, 1, 2]))[: rng.randint(0, 20)]
    return (start + [rng.randint(0, 2) for _ in range(24)])[:length]


# Two seeds on every run.
SEEDS = [pytest.param(seed, marks=() if seed < 2 else pytest.mark.exhaustive) for seed in range(8)]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_traffic_never_reads_what_another_would_compute(tiny_config: ModelConfig, seed: int) -> None:
    rng = random.Random(seed)
    simulation = Simulation(
        tiny_config,
        blocks=rng.choice((8, 9, 14, 40)),
        max_sequences=rng.randint(1, 6),
        max_batch_tokens=rng.randint(6, 30),
    )
    for _ in range(60):
        prompt = random_prompt(rng)
        digest = rng.choice(("base", "base", "a", "b", "a late", "b late"))
        fields = {
            "digest": digest,
            "adapted_from": 0 if digest == "base" else rng.choice((0, len(prompt) - 1, len(prompt) // 2)),
            "salt": rng.choice((None, None, None, "tenant")),
        }
        new = rng.randint(1, 32 - len(prompt))
        for seed in range(rng.choice((1, 1, 4))):
            simulation.add(prompt, new, seed=seed, **fields)
        for _ in range(rng.randint(0, 8)):
            simulation.step()
        if simulation.alive and rng.random() < 0.3:
            simulation.end(rng.choice(simulation.alive))
    simulation.run()
    assert simulation.blocks.tokens_reused > 0
    assert simulation.blocks.tokens_resumed > 0 or simulation.cache.num_blocks < 40
    assert simulation.blocks.tokens_computed == sum(simulation.computed.values())


def room(tiny_config: ModelConfig, **limits: int) -> Simulation:
    return Simulation(tiny_config, 64, **{"max_sequences": 16, "max_batch_tokens": 64, **limits})


@pytest.mark.parametrize("length", [2, 4, 5, 8, 11, 31, 32])
@pytest.mark.parametrize("budget", [16, 64])
def test_samples_of_one_prompt_compute_it_once(tiny_config: ModelConfig, length: int, budget: int) -> None:
    simulation = room(tiny_config, max_batch_tokens=budget)
    samples = [simulation.add([1] * length, 6, seed=seed) for seed in range(8)]
    while any(sample.num_generated == 0 for sample in samples):
        simulation.step()
    # Each sample computes the last token, for its logits, and the leader what it generated meanwhile.
    leader = simulation.computed.pop(0)
    assert leader == length + samples[0].num_generated - 1
    assert list(simulation.computed.values()) == [1] * 7
    assert [sample.kv.num_cached_tokens for sample in samples] == [0] + [length - 1] * 7
    simulation.run()


def test_who_waits_for_blocks_lets_others_pass(tiny_config: ModelConfig) -> None:
    simulation = room(tiny_config, max_batch_tokens=16)
    simulation.add([1] * 40, 1)
    simulation.add([1] * 40 + [2], 1)
    simulation.add([2] * 5, 1)
    assert simulation.step() == {0: 16}
    assert simulation.step() == {0: 16}
    assert simulation.step() == {0: 8, 2: 5}
    assert simulation.step() == {1: 1}


def test_nobody_waits_for_a_beginning_that_saves_little(tiny_config: ModelConfig) -> None:
    simulation = room(tiny_config)
    simulation.add([1, 1, 1] + [2] * 17, 1)
    simulation.add([1, 1, 1] + [3] * 17, 1)
    assert simulation.step() == {0: 20, 1: 20}


def test_nobody_waits_for_a_later_arrival(tiny_config: ModelConfig) -> None:
    simulation = room(tiny_config, max_batch_tokens=16)
    simulation.add([1, 1, 1] + [0] * 11, 1)
    simulation.add([1, 1, 1, 2, 2, 2, 2], 1)
    simulation.add([1, 1, 1, 2, 2, 2, 2] + [2] * 10, 1)
    assert simulation.step() == {0: 14, 2: 2}
    assert simulation.step() == {1: 1, 2: 15}


def test_followers_go_on_alone_when_their_leader_is_cancelled(tiny_config: ModelConfig) -> None:
    simulation = room(tiny_config, max_batch_tokens=16)
    leader, *followers = [simulation.add([1] * 30, 2, seed=seed) for seed in range(3)]
    assert simulation.step() == {0: 16}
    simulation.end(leader)
    assert simulation.step() == {1: 14}
    simulation.run()
    assert [follower.kv.num_cached_tokens for follower in followers] == [16, 29]


def test_other_mixtures_and_salts_share_nothing(tiny_config: ModelConfig) -> None:
    simulation = room(tiny_config)
    prompt = [1] * 20
    for fields in (
        {},
        {"digest": "a"},
        {"digest": "b"},
        {"salt": "x"},
        {"salt": "y"},
        {"digest": "a", "salt": "x"},
    ):
        assert simulation.add(prompt, 1, **fields).kv.num_cached_tokens is None
        simulation.run()
    assert simulation.blocks.tokens_reused == 0
    assert simulation.computed == dict.fromkeys(range(6), 20)


@pytest.mark.parametrize("adapted_from", [1, 7, 8, 11, 19])
def test_blocks_before_the_adapted_tokens_are_the_bases(tiny_config: ModelConfig, adapted_from: int) -> None:
    simulation = room(tiny_config)
    simulation.add([1] * 20, 1)
    simulation.run()
    second = simulation.add([1] * 20, 4, digest="a", adapted_from=adapted_from)
    simulation.run()
    assert (second.kv.num_cached_tokens, second.reuse) == (adapted_from, "after_prompt")
    third = simulation.add([1] * 20, 4, digest="a", adapted_from=adapted_from)
    simulation.run()
    assert third.kv.num_cached_tokens == 19
    assert third.reuse == ("same_mixture" if adapted_from < 19 else "after_prompt")
    base = simulation.add([1] * 20, 4)
    simulation.run()
    assert (base.kv.num_cached_tokens, base.reuse) == (19, "same_mixture")


def test_layers_that_a_mixture_leaves_alone_are_anybodys(tiny_config: ModelConfig) -> None:
    simulation = room(tiny_config)
    prompt = [1] * 20
    for index, (digest, reused, resumed) in enumerate(
        (
            ("base", 0, 0),
            ("a late", 0, 20),
            ("b late", 0, 20),
            ("a late", 19, 0),
            ("a", 0, 0),
            ("base", 19, 0),
        )
    ):
        sequence = simulation.add(prompt, 4, digest=digest)
        simulation.run()
        assert (sequence.kv.num_cached_tokens, sequence.kv.num_resumed_tokens) == (reused, resumed)
        assert simulation.resumed[index] == resumed
        assert sequence.reuse == ("first_layer" if resumed else "same_mixture" if reused else None)


def test_the_base_goes_on_from_what_an_expert_left_alone(tiny_config: ModelConfig) -> None:
    simulation = room(tiny_config)
    simulation.add([1] * 20, 4, digest="a late")
    simulation.run()
    base = simulation.add([1] * 18 + [2] * 4, 4)
    other = simulation.add([1] * 18 + [2] * 4, 4, digest="a late", salt="x")
    simulation.run()
    assert (base.kv.num_cached_tokens, base.kv.num_resumed_tokens) == (0, 18)
    assert (other.kv.num_cached_tokens, other.kv.num_resumed_tokens) == (0, 0)


def test_what_was_computed_before_states_were_kept_is_computed_again(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = room(tiny_config)
    with monkeypatch.context() as patch:
        patch.setattr(AllSlots, "first_layers", ())
        simulation.add([1] * 10, 1)
        simulation.run()
    simulation.add([1] * 9 + [2] * 20, 4)
    simulation.run()
    # Of the third block the first position was copied from a block without states.
    for digest in ("a late", "b late"):
        late = simulation.add([1] * 9 + [2] * 20 + [0], 4, digest=digest)
        simulation.run()
        resumed = 17 if digest == "a late" else 30
        assert (late.kv.num_cached_tokens, late.kv.num_resumed_tokens) == (0, resumed)


@pytest.mark.parametrize("new", [1, 2, 3, 11, 12, 13])
def test_generated_tokens_are_found_by_the_next_turn(tiny_config: ModelConfig, new: int) -> None:
    simulation = room(tiny_config)
    first = simulation.add([1] * 9, new)
    simulation.run()
    # The last generated token went through no step: nothing of it is computed.
    second = simulation.add([*first.token_ids, 2, 2, 2], 3)
    simulation.run()
    assert second.kv.num_cached_tokens == len(first.token_ids) - 1


def test_a_prompt_that_fills_the_cache_is_served_from_it(tiny_config: ModelConfig) -> None:
    simulation = Simulation(tiny_config, 8, max_sequences=4, max_batch_tokens=32)
    for length in (31, 31, 30):
        last = simulation.add([1] * length, 32 - length)
        simulation.run()
    assert last.kv.num_cached_tokens >= 28


def test_a_block_that_must_go_is_taken_over_instead_of_copied(tiny_config: ModelConfig) -> None:
    simulation = Simulation(tiny_config, 9, max_sequences=4, max_batch_tokens=32)
    for prompt in ([1] * 3, [2] * 31):
        simulation.add(prompt, 1)
        simulation.run()
    assert simulation.blocks.num_free == 0
    last = simulation.add([1] * 3 + [0] * 28, 1)
    simulation.run()
    assert last.kv.num_cached_tokens == 3
    assert simulation.blocks.tokens_evicted == 3 + 3 + 6 * BLOCK


def test_without_sharing_the_tree_stays_empty(tiny_config: ModelConfig) -> None:
    simulation = room(tiny_config)
    simulation.blocks._share = False
    for _ in range(3):
        simulation.add([1] * 20, 3)
    simulation.run()
    assert simulation.computed == dict.fromkeys(range(3), 22)
    assert (simulation.blocks.num_cached, simulation.blocks.tokens_reused) == (0, 0)


def test_a_namespace_that_was_forgotten_is_a_new_one(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zweave.kv_cache.prefix_key._MAX_NAMESPACES", 2)
    simulation = room(tiny_config)
    for salt in ("a", "b", "c", "a"):
        simulation.add([1] * 20, 2, salt=salt)
        simulation.run()
    assert simulation.blocks.tokens_reused == 0
    simulation.add([1] * 20, 2, salt="a")
    simulation.run()
    assert simulation.blocks.tokens_reused == 19


def test_fingerprints_tell_everything_apart(tiny_config: ModelConfig) -> None:
    """The check above would see a wrong mixture, salt, token, position or layer."""
    one = room(tiny_config).add([1] * 8, 1, digest="a", adapted_from=4)
    others = [
        (replace_sequence(one, adapted_from=3), 5, 0),
        (replace_sequence(one, token_ids=[2] + [1] * 7), 5, 0),
        (replace_sequence(one, mixture=replace(one.mixture, digest="b")), 5, 0),
        (replace_sequence(one, request=Request([1] * 8, salt="x")), 5, 0),
        (one, 6, 0),
        (one, 5, 1),
    ]
    prints = {fingerprint(*other) for other in others} | {fingerprint(one, 5, 0)}
    assert len(prints) == 7


def replace_sequence(sequence: Sequence, **changes: object) -> Sequence:
    fields = ("request_id", "request", "mixture", "token_ids", "adapted_from", "max_length", "text")
    return Sequence(**{name: getattr(sequence, name) for name in fields} | changes)
