"""Gives sequences their blocks of the cache: those that the prefix tree has, and fresh ones."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from ..kv_cache.block_pool import KVCache
from ..kv_cache.layer_reuse import LowerLayers, LowerMatch
from ..kv_cache.layer_states import LayerStates
from ..kv_cache.prefix_key import Symbols
from ..kv_cache.prefix_tree import SYMBOL, Match, Node, PrefixTree
from ..kv_cache.running_sums import Sum, running_sums
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Found:
    """What the tree has of a sequence: whole, and beyond that in the layers below one."""

    whole: Match
    lower: LowerMatch | None = None

    @property
    def nodes(self) -> list[Node]:
        """Those whose blocks must stay until they are shared or copied."""
        return self.whole.nodes + (self.lower.nodes if self.lower else [])


class BlockManager:
    """The first blocks of a sequence are nodes of the tree, as many as it has `nodes`, the others its own.

    A block enters the tree when it is computed to its end, the one with a prompt's end as soon as that is
    computed, and what a sequence leaves behind when it ends. It is written to by the sequence that computed
    it and nobody else: whoever wants the first positions of a block copies it. Fresh blocks come from the
    free ones first, then from those that the tree has and nobody holds.

    share: False keeps the tree empty, so that each sequence computes everything itself.
    """

    def __init__(self, cache: KVCache, share: bool = True) -> None:
        self._cache = cache
        self._share = share
        self._tree = PrefixTree(cache.block_size)
        self._symbols = Symbols()
        self._lower = LowerLayers(self._tree, self._symbols, cache.block_size)
        self.tokens_computed = 0
        self.tokens_looked_up = 0
        self.tokens_reused = 0
        self.tokens_resumed = 0
        self.tokens_evicted = 0

    @property
    def block_size(self) -> int:
        return self._cache.block_size

    @property
    def shares(self) -> bool:
        """Whether sequences can have others' blocks."""
        return self._share

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return self._cache.num_free

    @property
    def num_cached(self) -> int:
        """Blocks of the tree that no sequence holds."""
        return self._tree.num_unheld

    @property
    def num_held(self) -> int:
        """Blocks that sequences hold, shared ones counted once."""
        return self._cache.num_blocks - self.num_available

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give."""
        return self.num_free + self.num_cached

    def missing(self, sequence: Sequence, tokens: int) -> int:
        """How many more blocks a sequence needs to hold so many tokens."""
        return max(0, self._cache.blocks_for(tokens) - len(sequence.block_table))

    def symbols(self, sequence: Sequence) -> bytearray:
        """What a sequence's tokens are computed from; its keys and values can be others' as far as these agree."""
        if self._share:
            self._symbols.extend(sequence)
        return sequence.symbols

    def match(self, sequence: Sequence, layers: Seq[int] = ()) -> Found:
        """What the tree has of a sequence, its last token excepted: that one's logits, or state, are wanted.

        While states are read only blocks that know them will do.
        layers: those at which a sequence may be resumed.
        """
        nothing = Match([], None, 0)
        if not self._share:
            return Found(nothing)
        pooling = sequence.pooling
        if pooling is not None and not pooling.prompt_kv_reusable:
            return self._fitting(sequence, nothing, self._resumed_reading(sequence, layers))
        whole = self._whole(sequence)
        if pooling is None:
            lower = self._lower.match(sequence, whole, layers) if layers else None
            return self._fitting(sequence, whole, lower)
        return Found(self._summed(whole, pooling.layer))

    def _num_summed(self, nodes: Seq[Node], layer: int) -> int:
        """How many of the first nodes know the states that enter a layer; the sums up to their ends are noted."""
        total: Sum | None = None
        for index, node in enumerate(nodes):
            if layer not in node.sums:
                states = node.states.get(layer)
                if states is None or len(states) < self.block_size:
                    return index
                node.sums[layer] = running_sums(total, states)[-1].copy()
            total = node.sums[layer]
        return len(nodes)

    def _summed(self, whole: Match, layer: int) -> Match:
        """As far as the states that enter a layer are known."""
        known = self._num_summed(whole.nodes, layer)
        tokens = known * self.block_size
        source = whole.source if known == len(whole.nodes) else None
        if source is not None and len(source.states.get(layer, ())) >= whole.tokens - tokens:
            return whole
        return Match(whole.nodes[:known], None, tokens)

    def _whole(self, sequence: Sequence) -> Match:
        return self._tree.match(bytes(self.symbols(sequence)[: (sequence.num_target_tokens - 1) * SYMBOL]))

    def _resumed_reading(self, sequence: Sequence, layers: Seq[int]) -> LowerMatch | None:
        """For a first pass that ends at a layer: whole blocks that know their states there and at the one read."""
        pooling, exit_layer = sequence.pooling, sequence.exit_layer
        if pooling is None or exit_layer is None or exit_layer not in layers:
            return None
        found = self._lower.match(sequence, Match([], None, 0), [exit_layer])
        known = min(found.tokens, sequence.num_target_tokens - 1) if found and not found.first else 0
        nodes = found.nodes[: known // self.block_size] if found else []
        nodes = nodes[: self._num_summed(nodes, pooling.layer)]
        return LowerMatch(exit_layer, 0, nodes, len(nodes) * self.block_size) if nodes else None

    def _fitting(self, sequence: Sequence, whole: Match, lower: LowerMatch | None) -> Found:
        """Without the lower layers where there are no blocks for copies."""
        found = Found(whole, lower)
        return found if lower is None or self.fits(sequence, found) else Found(whole)

    def fits(self, sequence: Sequence, found: Found) -> bool:
        """Whether there are blocks for the tokens of a sequence that were not found in whole blocks."""
        held = sum(node.holders == 0 for node in found.nodes)
        fresh = self._cache.blocks_for(len(sequence.token_ids)) - len(found.whole.nodes)
        return self.num_available - held >= fresh

    def attach(self, sequence: Sequence, found: Found) -> None:
        """Gives a sequence without blocks what was found for it; there is room (`fits`)."""
        whole = found.whole
        self._tree.hold(found.nodes)
        sequence.nodes = list(whole.nodes)
        sequence.block_table = [node.block for node in whole.nodes]
        if whole.source is not None:
            # If the source itself had to go its block is the one allocated, and still holds what it held.
            sequence.block_table += self.allocate(1)
            self._cache.copy(whole.source.block, sequence.block_table[-1])
            self._keep_copied(sequence, whole.source, whole.tokens)
            self._tree.touch(whole.source)
        sequence.num_computed_tokens = sequence.num_indexed_tokens = whole.tokens
        if found.lower is not None:
            self._copy_lower(sequence, found.lower)
        if sequence.pooling is not None:
            sequence.pooling.restart(sequence.next_position, self._sum(found, sequence.pooling.layer))
        resumed = len(sequence.partial_states.states) if sequence.partial_states else 0
        self.tokens_looked_up += len(sequence.token_ids)
        self.tokens_reused += whole.tokens
        self.tokens_resumed += resumed
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens, sequence.num_resumed_tokens = whole.tokens, resumed

    def _sum(self, found: Found, layer: int) -> Sum | None:
        """Of the states that enter a layer, of all positions found; None for none."""
        total = found.nodes[-1].sums[layer] if found.nodes else None
        source = found.whole.source
        if source is None:
            return total
        states = source.states[layer][: found.whole.tokens - len(found.whole.nodes) * self.block_size]
        return running_sums(total, states)[-1].copy()

    def _keep_copied(self, sequence: Sequence, source: Node, tokens: int) -> None:
        """Has the copy of a block know the states that the block knows, if it knows all that were copied."""
        start = (len(sequence.block_table) - 1) * self.block_size
        for layer, states in source.states.items():
            if len(states) >= tokens - start:
                sequence.cached_states[layer] = LayerStates(layer, start, states[: tokens - start])

    def _copy_lower(self, sequence: Sequence, lower: LowerMatch) -> None:
        """Copies blocks, which are held, as far as they are the sequence's, too."""
        needed = lower.first + len(lower.nodes) - len(sequence.block_table)
        sequence.block_table += self.allocate(needed)
        self._cache.copy_below(
            lower.layer, [node.block for node in lower.nodes], sequence.block_table[lower.first :]
        )
        known = lower.states(self.block_size)
        sequence.cached_states[lower.layer] = known
        sequence.partial_states = known.since(sequence.num_computed_tokens)
        self._tree.release(lower.nodes)

    def adopt(self, sequence: Sequence) -> None:
        """Has blocks that the tree has whole take the place of those that the sequence computed in part."""
        if not self._share or sequence.partial_states is None or sequence.nodes:
            return
        nodes = self._whole(sequence).nodes
        before, after = sequence.num_computed_tokens, len(nodes) * self.block_size
        if after <= before:
            return
        self._tree.hold(nodes)
        for index, node in enumerate(nodes):
            self._give_states(sequence, node, index * self.block_size, (index + 1) * self.block_size)
        self._cache.release(sequence.block_table[: len(nodes)])
        sequence.nodes = list(nodes)
        sequence.block_table[: len(nodes)] = [node.block for node in nodes]
        sequence.num_computed_tokens = sequence.num_indexed_tokens = sequence.num_cached_tokens = after
        sequence.partial_states = sequence.partial_states.since(after)
        self.tokens_reused += after - before

    def allocate(self, count: int) -> list[int]:
        """Takes fresh blocks; the caller has made sure that there are as many."""
        while count > self._cache.num_free:
            node = self._tree.evict()
            if node is None:
                raise RuntimeError(f"{count} blocks asked for, {self._cache.num_free} are to be had")
            self.tokens_evicted += len(node.key) // SYMBOL
            self._cache.release([node.block])
        return self._cache.allocate(count)

    def release(self, blocks: list[int]) -> None:
        """Gives back blocks that are not in the tree."""
        self._cache.release(blocks)

    def commit(self, sequence: Sequence) -> None:
        """Takes blocks that a sequence has computed since the last call into the tree."""
        if sequence.num_computed_tokens == sequence.num_indexed_tokens:
            return
        before, sequence.num_indexed_tokens = sequence.num_indexed_tokens, sequence.num_computed_tokens
        self.tokens_computed += sequence.num_computed_tokens - before
        if not self._keeps(sequence):
            return
        whole = sequence.num_computed_tokens // self.block_size
        if whole > len(sequence.nodes) - self._has_open_end(sequence):
            self._close(sequence)
            while len(sequence.nodes) < whole:
                self._insert(sequence, (len(sequence.nodes) + 1) * self.block_size)
        if before < sequence.num_prompt_tokens <= sequence.num_computed_tokens:
            self._insert_end(sequence)

    def detach(self, sequence: Sequence) -> None:
        """Takes a sequence's blocks away; what is computed stays in the tree until its blocks are wanted."""
        self.commit(sequence)
        if sequence.exit_layer is not None and sequence.partial_states is not None:
            self.tokens_computed += (
                sequence.partial_states.stop - sequence.num_computed_tokens - sequence.num_resumed_tokens
            )
        if self._keeps(sequence) and sequence.num_computed_tokens:
            self._close(sequence)
            self._insert_end(sequence)
        self._tree.release(sequence.nodes)
        self._cache.release(sequence.block_table[len(sequence.nodes) :])
        sequence.nodes, sequence.block_table = [], []
        sequence.num_computed_tokens = sequence.num_indexed_tokens = 0
        sequence.partial_states = None
        sequence.cached_states.clear()

    def _keeps(self, sequence: Sequence) -> bool:
        """Whether the tree takes a sequence's blocks: not those that are computed in some layers only."""
        return self._share and sequence.exit_layer is None

    def _has_open_end(self, sequence: Sequence) -> bool:
        """Whether the last node is a block that its sequence, which alone holds it, still writes to."""
        return bool(sequence.nodes) and len(sequence.nodes[-1].key) < self.block_size * SYMBOL

    def _close(self, sequence: Sequence) -> None:
        """Makes an open end the sequence's own again: it comes back with the positions that were added."""
        if self._has_open_end(sequence):
            self._tree.remove(sequence.nodes.pop())

    def _insert_end(self, sequence: Sequence) -> None:
        """Takes the last block into the tree, as far as it is computed, unless the tree has those positions."""
        whole = len(sequence.nodes) * self.block_size
        if self._has_open_end(sequence) or sequence.num_computed_tokens == whole:
            return
        key = self._symbols.between(sequence, whole, sequence.num_computed_tokens)
        if not self._tree.covers(_last(sequence), key):
            self._insert(sequence, sequence.num_computed_tokens)

    def _insert(self, sequence: Sequence, stop: int) -> None:
        """Makes the next block a node whose positions end at `stop`. If another sequence computed the same
        meanwhile its block is taken over: the bits are equal."""
        index = len(sequence.nodes)
        key = self._symbols.between(sequence, index * self.block_size, stop)
        node = self._tree.insert(_last(sequence), key, sequence.block_table[index])
        if node.block != sequence.block_table[index]:
            self._cache.release([sequence.block_table[index]])
            sequence.block_table[index] = node.block
        self._give_states(sequence, node, index * self.block_size, stop)
        if stop % self.block_size == 0:
            left = [
                rest for known in sequence.cached_states.values() if (rest := known.since(stop)) is not None
            ]
            sequence.cached_states = {rest.layer: rest for rest in left}
        self._lower.note(sequence)
        sequence.nodes.append(node)

    def _give_states(self, sequence: Sequence, node: Node, start: int, stop: int) -> None:
        """Keeps with a block what its sequence knows of the states of these positions."""
        for layer, kept in sequence.cached_states.items():
            states = kept.between(start, stop)
            if len(states) > len(node.states.get(layer, ())):
                node.states[layer] = states


def _last(sequence: Sequence) -> Node | None:
    return sequence.nodes[-1] if sequence.nodes else None
