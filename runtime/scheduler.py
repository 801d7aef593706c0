"""Continuous batching: which tokens of which sequences the next step computes."""

from collections import deque

from zweave.bank import Bank
from zweave.errors import ZweaveError
from zweave.kv_cache import KVCache
from zweave.sequence import Chunk, Sequence


class Scheduler:
    """First come, first served. Decoding goes before prefill, and prompts are cut to the token budget.

    When blocks run out the latest arrival is preempted: it gives its blocks back, keeps its bank slot, and
    is computed again from its tokens later, which gives the same values bit for bit.
    """

    def __init__(self, cache: KVCache, bank: Bank, max_sequences: int, max_batch_tokens: int) -> None:
        self._cache = cache
        self._bank = bank
        self._max_sequences = max_sequences
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.preemptions = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, finished or not, and frees what it holds."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._free_blocks(sequence)
        if sequence.slot is not None:
            self._bank.release(sequence.slot)
            sequence.slot = None

    def schedule(self) -> tuple[list[Chunk], list[tuple[Sequence, str]]]:
        """Returns the chunks of the next step, and the sequences that cannot run with the reason.

        Every chunk has its blocks and its slot. The list is empty only if nothing is left to run.
        """
        plan: dict[Sequence, int] = {}
        budget = self._max_batch_tokens
        preemptions = self.preemptions
        for sequence in sorted(self._running, key=_is_prefilling):
            count = min(_pending(sequence), budget)
            if count and sequence in self._running and self._reserve(sequence, count, plan):
                plan[sequence] = count
                budget = self._max_batch_tokens - sum(plan.values())
        failed: list[tuple[Sequence, str]] = []
        # Blocks that a preemption freed are spoken for: nobody is admitted in the same step.
        while self._waiting and self.preemptions == preemptions and len(self._running) < self._max_sequences:
            sequence = self._waiting[0]
            count = min(_pending(sequence), budget)
            if count == 0 or self._cache.blocks_for(len(sequence.tokens)) > self._cache.num_free:
                break
            try:
                admitted = self._take_slot(sequence)
            except ZweaveError as error:
                failed.append((self._waiting.popleft(), str(error)))
                continue
            if not admitted:
                break
            self._waiting.popleft()
            self._running.append(sequence)
            self._running.sort(key=_arrival)
            self._reserve(sequence, count, plan)
            plan[sequence] = count
            budget -= count
        return [Chunk(sequence, count) for sequence, count in plan.items()], failed

    def _take_slot(self, sequence: Sequence) -> bool:
        if sequence.slot is None:
            sequence.slot = self._bank.try_acquire(sequence.mixture)
        return sequence.slot is not None

    def _reserve(self, sequence: Sequence, count: int, plan: dict[Sequence, int]) -> bool:
        """Gives the sequence blocks for `count` more tokens; False if it had to be preempted itself."""
        needed = self._cache.blocks_for(sequence.computed + count) - len(sequence.blocks)
        while needed > self._cache.num_free:
            victim = self._running.pop()
            plan.pop(victim, None)
            self._free_blocks(victim)
            self._waiting.appendleft(victim)
            self.preemptions += 1
            if victim is sequence:
                return False
        sequence.blocks += self._cache.allocate(needed)
        return True

    def _free_blocks(self, sequence: Sequence) -> None:
        self._cache.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0


def _pending(sequence: Sequence) -> int:
    return len(sequence.tokens) - sequence.computed


def _is_prefilling(sequence: Sequence) -> bool:
    return _pending(sequence) > 1


def _arrival(sequence: Sequence) -> int:
    return sequence.request_id
