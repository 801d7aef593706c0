"""Continuous batching: which tokens of which sequences the next step computes."""

from bisect import insort
from collections import deque
from dataclasses import replace
from itertools import islice, pairwise

from ..errors import ZweaveError
from ..experts.bank import Bank
from ..experts.resolved_mixture import ResolvedMixture
from ..kv_cache.prefix_key import common_prefix_length
from .block_manager import BlockManager
from .chunk import Chunk
from .sequence import Sequence
from .slot_manager import SlotManager
from .stats import EngineStats
from .step_plan import StepPlan

# A step looks at this many waiting requests for each one that may run: requests waiting for a shared prefix may be
# overtaken.
_SCAN_FACTOR = 2


class Scheduler:
    """First come, first served, among requests of one priority. Decoding goes before prefill, and prompts are cut to
    the token budget.

    When blocks run out the last in that order is preempted: it gives its blocks and its bank slot back, and is computed
    again from its tokens later, which gives the same values bit for bit. So no waiting sequence holds what an earlier
    one waits for.

    A request whose prompt begins like one that is being computed waits until it can share that one's blocks, and
    may be overtaken meanwhile. It waits only for those that go before it, and only for running ones, which get on in
    every step.
    """

    def __init__(self, blocks: BlockManager, bank: Bank, max_sequences: int, max_batch_tokens: int) -> None:
        self._blocks = blocks
        self._bank = bank
        self._slots = SlotManager(bank, max_sequences)
        self._max_sequences = max_sequences
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in that order, as `_waiting` is
        # The layer that the latest first pass pools. All prompts store their states there, since the next first pass
        # will pool the same layer: an engine has one dispatcher as a rule. With several, the latest decides.
        self._last_pooled_layer: int | None = None
        self.preemptions = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence, which may go before others that arrived earlier, or did not wait for a first pass."""
        if sequence.read_states is not None:
            self._last_pooled_layer = sequence.read_states.layer
        self._queue(sequence)

    def _queue(self, sequence: Sequence) -> None:
        """Puts a sequence where it belongs among those that wait."""
        if self._waiting and _order(self._waiting[-1]) > _order(sequence):
            insort(self._waiting, sequence, key=_order)
        else:
            self._waiting.append(sequence)

    def bind(self, sequence: Sequence, mixture: ResolvedMixture, adapted_from: int) -> bool:
        """Gives a sequence the mixture that was chosen after its first pass; returns whether it keeps running.

        It does if its keys and values stay valid under the mixture, and the mixture gets a slot at once. Otherwise it
        waits again, and finds in the prefix cache what it can use.
        """
        keeps_running = sequence in self._running and sequence.keeps_kv_valid(mixture, adapted_from)
        if keeps_running:
            self._blocks.cache_blocks(sequence)
        elif sequence in self._running:
            self.remove(sequence)
        sequence.bind(mixture, adapted_from)
        if keeps_running:
            sequence.slot = None
            try:
                keeps_running = self._slots.take(sequence, sequence.next_position)
            except ZweaveError:  # reported when the sequence is admitted
                keeps_running = False
            if not keeps_running:
                self.remove(sequence)
        if keeps_running:
            self._blocks.swap_in_shared(sequence)
        else:
            self.add(sequence)
        return keeps_running

    def settle(self, sequence: Sequence, mixture: ResolvedMixture, adapted_from: int, slot: int) -> None:
        """Gives a sequence the mixture that the device has chosen, whose slot it keeps of all candidates'."""
        self._slots.settle(sequence, slot)
        sequence.settle(mixture, adapted_from, slot)

    def rescale(self, sequence: Sequence, mixture: ResolvedMixture, adapted_from: int) -> None:
        """Changes the mixture of a sequence of which nothing is in flight: from its latest token on.

        One without an answer yet gets the mixture for its prompt, too, from `adapted_from` on.
        """
        if sequence.num_generated:
            sequence.rescale(mixture)
        else:
            self.remove(sequence)
            self.bind(sequence, mixture, adapted_from)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, finished or not, and frees what it holds."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._release(sequence)

    def schedule(self) -> tuple[list[Chunk], list[tuple[Sequence, str]]]:
        """Returns the chunks of the next step, and the sequences that cannot run with the reason.

        Every chunk has its blocks and its slot. The list is empty only if nothing is left to run, or a step in flight
        must land first.
        """
        for sequence in self._running:
            self._blocks.cache_blocks(sequence)
        failed = self._slots.change(self._running)
        plan = StepPlan(self._max_batch_tokens)
        preempted = self._plan_running(plan)
        if preempted is None:
            return [], failed
        # Blocks that a preemption freed are for those that go first: nobody is admitted in the same step.
        if not preempted:
            failed += self._admit(plan)
        return [chunk for sequence, count in plan for chunk in self._chunks(sequence, count)], failed

    def _plan_running(self, plan: StepPlan) -> set[Sequence] | None:
        """Plans the next tokens of the running sequences, decoding ones first; returns those that were preempted.

        None if one would have to be preempted while tokens are in flight: where those land is not known before.
        """
        preempted: set[Sequence] = set()
        for sequence in sorted(self._running, key=lambda running: running.is_prefilling):
            count = plan.count_for(sequence)
            if sequence in preempted or not count or sequence.slot is None:
                continue
            num_tokens = sequence.next_position + count
            num_missing = self._blocks.num_missing_blocks(sequence, num_tokens)
            if num_missing > self._blocks.num_available and self._has_in_flight:
                return None
            for victim in self._preempt_for(sequence, num_tokens):
                preempted.add(victim)
                plan.drop(victim)
            if sequence not in preempted:
                self._blocks.append_blocks(sequence, num_tokens)
                plan.add(sequence, count)
        return preempted

    @property
    def _has_in_flight(self) -> bool:
        return any(sequence.in_flight for sequence in self._running)

    def _preempt_for(self, sequence: Sequence, num_tokens: int) -> list[Sequence]:
        """Preempts the last in order, in the end the sequence itself, until it can have blocks for its tokens."""
        victims: list[Sequence] = []
        num_missing = self._blocks.num_missing_blocks(sequence, num_tokens)
        while num_missing > self._blocks.num_available and sequence not in victims:
            victim = self._running.pop()
            self._release(victim)
            self._queue(victim)
            self.preemptions += 1
            victims.append(victim)
        return victims

    def _admit(self, plan: StepPlan) -> list[tuple[Sequence, str]]:
        """Admits waiting sequences and plans their tokens; returns those that cannot run."""
        failed: list[tuple[Sequence, str]] = []
        for sequence in list(islice(self._waiting, _SCAN_FACTOR * self._max_sequences)):
            if plan.num_free_tokens == 0 or len(self._running) >= self._max_sequences:
                break
            hit = self._blocks.match_prefix(sequence, self._bank.first_layers)
            if self._awaits_blocks(sequence, hit.prefix.num_tokens):
                continue
            if not self._blocks.can_allocate(sequence, hit):
                break
            try:
                has_slot = self._slots.take(sequence, hit.prefix.num_tokens)
            except ZweaveError as error:
                self._waiting.remove(sequence)
                failed.append((sequence, str(error)))
                continue
            if not has_slot:
                break
            self._waiting.remove(sequence)
            insort(self._running, sequence, key=_order)
            self._blocks.allocate(sequence, hit)
            count = plan.count_for(sequence)
            self._blocks.append_blocks(sequence, sequence.next_position + count)
            plan.add(sequence, count)
        return failed

    def _awaits_blocks(self, sequence: Sequence, num_found: int) -> bool:
        """Whether it is worth to wait for the blocks of a running prompt.

        It is if that prompt gives the sequence a block more than was found, or half of what is missing.
        """
        if sequence.wants_prompt_logprobs:
            return False
        num_missing = sequence.num_lookup_tokens - 1 - num_found
        worthwhile = min(self._blocks.block_size, (num_missing + 1) // 2)
        for leader in self._running if num_missing else ():
            if _order(leader) < _order(sequence) and leader.is_prefilling and _can_share(leader, sequence):
                num_common = common_prefix_length(
                    self._blocks.prefix_key(leader), self._blocks.prefix_key(sequence)
                )
                if min(num_common - num_found, num_missing) >= worthwhile:
                    return True
        return False

    def _release(self, sequence: Sequence) -> None:
        """Gives back the blocks and the slot of a sequence that runs no longer."""
        self._blocks.free(sequence)
        sequence.in_flight = sequence.num_awaited = 0
        self._slots.release(sequence)

    def _chunks(self, sequence: Sequence, count: int) -> list[Chunk]:
        """The next tokens as chunks, cut where the layer at which they enter or the expert that is chosen changes."""
        start, stop = sequence.next_position, sequence.next_position + count
        partial, choice = sequence.kv.partial_states, sequence.choice
        cuts = [] if partial is None or sequence.exit_layer is not None else [partial.start, partial.stop]
        cuts += [] if choice is None else [choice.pooling.stop]
        edges = [start, *(cut for cut in cuts if start < cut < stop), stop]
        return [self._chunk(sequence, *span) for span in pairwise(edges)]

    def _chunk(self, sequence: Sequence, start: int, stop: int) -> Chunk:
        """A chunk with its `cache_layers`: where experts begin or first passes pool, and the tokens are the base's."""
        complete = sequence.pooling is None and stop == sequence.num_target_tokens
        reads_top = sequence.wants_prompt_logprobs and start + 1 < sequence.num_prompt_tokens
        top_layer = self._blocks.num_layers if reads_top else None
        chunk = Chunk(sequence, start, stop - start, complete, top_layer=top_layer)
        if not self._blocks.shares or start >= sequence.num_prompt_tokens:
            return chunk
        exit_layer, pooling = sequence.exit_layer, sequence.read_states
        pooled_layer = self._last_pooled_layer if pooling is None else pooling.layer
        wanted = {*self._bank.first_layers} | (set() if pooled_layer is None else {pooled_layer})
        cache_layers = tuple(
            layer
            for layer in sorted(wanted)
            if chunk.entry_layer < layer
            and (exit_layer is None or layer < exit_layer)
            and start < sequence.base_until(layer)
        )
        return replace(chunk, cache_layers=cache_layers)

    def stats(self) -> EngineStats:
        """What was computed and reused so far, and the state of the cache."""
        blocks = self._blocks
        return EngineStats(
            tokens_computed=blocks.tokens_computed,
            tokens_looked_up=blocks.tokens_looked_up,
            tokens_reused=blocks.tokens_reused,
            tokens_resumed=blocks.tokens_resumed,
            tokens_evicted=blocks.tokens_evicted,
            preemptions=self.preemptions,
            blocks_in_use=blocks.num_in_use,
            blocks_cached=blocks.num_cached,
            blocks_free=blocks.num_free,
            requests_running=len(self._running),
            requests_waiting=len(self._waiting),
        )


def _can_share(leader: Sequence, sequence: Sequence) -> bool:
    """Whether a sequence will be able to use the blocks that the leader computes."""
    one, other = leader.read_states, sequence.read_states
    if not all(pooling is None or pooling.prompt_kv_reusable for pooling in (one, other)):
        return False
    if other is None or other.layer in leader.kv.cached_states:
        return True
    return one is not None and one.layer == other.layer


def _order(sequence: Sequence) -> tuple[int, int, int]:
    """What goes first has the lower number of priority, then the earlier arrival."""
    return sequence.request.priority, sequence.request_id, sequence.sample
