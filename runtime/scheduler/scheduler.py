"""Continuous batching: which tokens of which sequences the next step computes."""

from bisect import insort
from collections import deque
from dataclasses import replace
from itertools import islice, pairwise

from ..errors import ZweaveError
from ..experts.bank import Bank, ResolvedMixture
from ..kv_cache.prefix_key import common_positions
from .block_manager import BlockManager
from .chunk import Chunk
from .sequence import Sequence
from .stats import EngineStats


class Scheduler:
    """First come, first served. Decoding goes before prefill, and prompts are cut to the token budget.

    When blocks run out the latest arrival is preempted: it gives its blocks back, keeps its bank slot, and
    is computed again from its tokens later, which gives the same values bit for bit.

    A request whose prompt begins like one that is being computed waits until it can share that one's blocks,
    and lets later arrivals pass meanwhile. It waits for earlier arrivals only, and these are never waiting
    themselves, so that they get on in every step.
    """

    def __init__(self, blocks: BlockManager, bank: Bank, max_sequences: int, max_batch_tokens: int) -> None:
        self._blocks = blocks
        self._bank = bank
        self._max_sequences = max_sequences
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        # The layer that the latest first pass reads: the next one will read it, too, of what all have computed.
        self._read_layer: int | None = None
        self.preemptions = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Has a sequence wait in the order of arrival, which a first pass may have held up."""
        if sequence.pooling is not None:
            self._read_layer = sequence.pooling.layer
        if self._waiting and _arrival(self._waiting[-1]) > _arrival(sequence):
            insort(self._waiting, sequence, key=_arrival)
        else:
            self._waiting.append(sequence)

    def bind(self, sequence: Sequence, mixture: ResolvedMixture, adapted_from: int) -> bool:
        """Gives a sequence the mixture that its first pass chose; whether it goes on where it is.

        It does if the mixture computes the same as what was computed and has a slot at once. Else it waits again, and
        finds in the cache what it can keep.
        """
        is_running = sequence in self._running
        goes_on = is_running and sequence.keeps_kv_valid(mixture, adapted_from)
        if goes_on:
            self._blocks.commit(sequence)
        elif is_running:
            self.remove(sequence)
        sequence.bind(mixture, adapted_from)
        if goes_on:
            sequence.slot = None
            try:
                goes_on = self._take_slot(sequence)
            except ZweaveError:  # told when it is to be taken up
                goes_on = False
            if not goes_on:
                self.remove(sequence)
        if goes_on:
            self._blocks.adopt(sequence)
        else:
            self.add(sequence)
        return goes_on

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, finished or not, and frees what it holds."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._blocks.detach(sequence)
        if sequence.slot is not None:
            self._bank.release(sequence.slot)
            sequence.slot = None

    def schedule(self) -> tuple[list[Chunk], list[tuple[Sequence, str]]]:
        """Returns the chunks of the next step, and the sequences that cannot run with the reason.

        Every chunk has its blocks and its slot. The list is empty only if nothing is left to run.
        """
        for sequence in self._running:
            self._blocks.commit(sequence)
        plan: dict[Sequence, int] = {}
        budget = self._max_batch_tokens
        preemptions = self.preemptions
        for sequence in sorted(self._running, key=_is_prefilling):
            count = min(_pending(sequence), budget)
            if count and sequence in self._running and self._reserve(sequence, count, plan):
                plan[sequence] = count
                budget = self._max_batch_tokens - sum(plan.values())
        # Blocks that a preemption freed are spoken for: nobody is admitted in the same step.
        failed = self._admit(plan, budget) if self.preemptions == preemptions else []
        return [chunk for sequence, count in plan.items() for chunk in self._chunks(sequence, count)], failed

    def _chunks(self, sequence: Sequence, count: int) -> list[Chunk]:
        """The next tokens, those that enter at another layer by themselves."""
        start, stop = sequence.next_position, sequence.next_position + count
        below = sequence.partial_states
        cuts = () if below is None or sequence.exit_layer is not None else (below.start, below.stop)
        edges = [start, *(cut for cut in cuts if start < cut < stop), stop]
        return [self._chunk(sequence, *span) for span in pairwise(edges)]

    def _chunk(self, sequence: Sequence, start: int, stop: int) -> Chunk:
        """With the layers noted at which experts begin, or first passes read, and the tokens are the base's yet."""
        chunk = Chunk(sequence, start, stop - start)
        if not self._blocks.shares or start >= sequence.num_prompt_tokens:
            return chunk
        exit_layer, pooling = sequence.exit_layer, sequence.pooling
        read = self._read_layer if pooling is None else pooling.layer
        wanted = {*self._bank.first_layers} | (set() if read is None else {read})
        cache_layers = tuple(
            layer
            for layer in sorted(wanted)
            if chunk.entry_layer < layer
            and (exit_layer is None or layer < exit_layer)
            and start < sequence.base_until(layer)
        )
        return replace(chunk, cache_layers=cache_layers)

    def _admit(self, plan: dict[Sequence, int], budget: int) -> list[tuple[Sequence, str]]:
        """Takes up waiting sequences and adds their tokens to the plan; returns those that cannot run."""
        failed: list[tuple[Sequence, str]] = []
        # So many may be passed by others in a step, those who wait for blocks that are being computed.
        for sequence in list(islice(self._waiting, 2 * self._max_sequences)):
            if budget == 0 or len(self._running) >= self._max_sequences:
                break
            found = self._blocks.match(sequence, self._bank.first_layers)
            if self._awaits_blocks(sequence, found.whole.tokens):
                continue
            if not self._blocks.fits(sequence, found):
                break
            try:
                admitted = self._take_slot(sequence)
            except ZweaveError as error:
                self._waiting.remove(sequence)
                failed.append((sequence, str(error)))
                continue
            if not admitted:
                break
            self._waiting.remove(sequence)
            self._running.append(sequence)
            self._running.sort(key=_arrival)
            self._blocks.attach(sequence, found)
            count = min(_pending(sequence), budget)
            self._reserve(sequence, count, plan)
            plan[sequence] = count
            budget -= count
        return failed

    def _awaits_blocks(self, sequence: Sequence, found: int) -> bool:
        """Whether a running prompt will soon have computed a block more of a sequence than was found of it,
        or half of what is missing."""
        missing = sequence.num_target_tokens - 1 - found
        worthwhile = min(self._blocks.block_size, (missing + 1) // 2)
        for leader in self._running if missing else ():
            if (
                _arrival(leader) < _arrival(sequence)
                and _is_prefilling(leader)
                and _can_give(leader, sequence)
            ):
                common = common_positions(self._blocks.symbols(leader), self._blocks.symbols(sequence))
                if min(common - found, missing) >= worthwhile:
                    return True
        return False

    def _take_slot(self, sequence: Sequence) -> bool:
        if sequence.slot is None:
            sequence.slot = self._bank.try_acquire(sequence.mixture)
        return sequence.slot is not None

    def _reserve(self, sequence: Sequence, count: int, plan: dict[Sequence, int]) -> bool:
        """Gives the sequence blocks for `count` more tokens; False if it had to be preempted itself."""
        needed = self._blocks.missing(sequence, sequence.next_position + count)
        while needed > self._blocks.num_available:
            victim = self._running.pop()
            plan.pop(victim, None)
            self._blocks.detach(victim)
            self._waiting.appendleft(victim)
            self.preemptions += 1
            if victim is sequence:
                return False
        sequence.block_table += self._blocks.allocate(needed)
        return True

    def stats(self) -> EngineStats:
        """What was computed and reused so far, and where the cache stands."""
        blocks = self._blocks
        return EngineStats(
            tokens_computed=blocks.tokens_computed,
            tokens_looked_up=blocks.tokens_looked_up,
            tokens_reused=blocks.tokens_reused,
            tokens_resumed=blocks.tokens_resumed,
            tokens_evicted=blocks.tokens_evicted,
            preemptions=self.preemptions,
            blocks_in_use=blocks.num_held,
            blocks_cached=blocks.num_cached,
            blocks_free=blocks.num_free,
        )


def _pending(sequence: Sequence) -> int:
    return sequence.num_target_tokens - sequence.next_position


def _is_prefilling(sequence: Sequence) -> bool:
    return _pending(sequence) > 1


def _can_give(leader: Sequence, sequence: Sequence) -> bool:
    """Whether the blocks of the one will be of use to the other."""
    one, other = leader.pooling, sequence.pooling
    if not all(pooling is None or pooling.prompt_kv_reusable for pooling in (one, other)):
        return False
    return (
        other is None or other.layer in leader.cached_states or (one is not None and one.layer == other.layer)
    )


def _arrival(sequence: Sequence) -> int:
    return sequence.request_id
