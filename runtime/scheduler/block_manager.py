"""Gives sequences their blocks: those that the prefix tree already has, and fresh ones."""

from collections.abc import Sequence as Seq

from ..kv_cache.block_pool import KVCache
from ..kv_cache.kv_state import KVState
from ..kv_cache.layer_reuse import LayerHit
from ..kv_cache.layer_states import LayerStates
from ..kv_cache.prefix_key import KEY_BYTES
from ..kv_cache.prefix_sums import prefix_states, prefix_sum
from ..kv_cache.prefix_tree import Node, PrefixMatch, PrefixTree
from .prefix_lookup import PrefixHit, PrefixLookup
from .sequence import Sequence


class BlockManager:
    """Allocates the blocks of sequences, shares them through the prefix tree, and updates each sequence's KVState.

    A sequence's first blocks are nodes of the prefix tree, the others are private. A block enters the tree when it is
    full, when it holds the end of a prompt, and when its sequence ends. Only the sequence that computed a block writes
    to it: whoever needs its first positions copies the block. Fresh blocks come from the free list, then from the
    tree's nodes without references.

    share: False disables the prefix tree: every sequence computes all its tokens.
    """

    def __init__(self, cache: KVCache, share: bool = True) -> None:
        self._cache = cache
        self._share = share
        self._tree = PrefixTree(cache.block_size)
        self._lookup = PrefixLookup(self._tree, cache.block_size)
        self.tokens_computed = 0
        self.tokens_looked_up = 0
        self.tokens_reused = 0
        self.tokens_resumed = 0
        self.tokens_evicted = 0

    @property
    def block_size(self) -> int:
        return self._cache.block_size

    @property
    def num_layers(self) -> int:
        return len(self._cache.layers)

    @property
    def shares(self) -> bool:
        """Whether sequences share blocks."""
        return self._share

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return self._cache.num_free

    @property
    def num_cached(self) -> int:
        """Blocks of the prefix tree that no sequence uses."""
        return self._tree.num_evictable

    @property
    def num_in_use(self) -> int:
        """Blocks that sequences use, shared ones counted once."""
        return self._cache.num_blocks - self.num_available

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated."""
        return self.num_free + self.num_cached

    def prefix_key(self, sequence: Sequence) -> bytearray:
        """Keys of a sequence's tokens: two sequences share keys and values up to where these differ."""
        return self._lookup.prefix_key(sequence) if self._share else sequence.kv.prefix_key

    def match_prefix(self, sequence: Sequence, resume_layers: Seq[int] = ()) -> PrefixHit:
        """Finds what the cache has of a sequence but for its last token, whose logits or states are needed.

        Nothing for a sequence that wants log-probabilities of its prompt, whose tokens are all computed for them.
        resume_layers: layers at which the sequence can resume.
        """
        if not self._share or sequence.wants_prompt_logprobs:
            return PrefixHit(PrefixMatch())
        hit = self._lookup.match(sequence, resume_layers)
        # A layer hit needs blocks for copies: without them its tokens are computed.
        has_room = hit.layer_hit is None or self.can_allocate(sequence, hit)
        return hit if has_room else PrefixHit(hit.prefix)

    def can_allocate(self, sequence: Sequence, hit: PrefixHit) -> bool:
        """Whether there are blocks for all tokens of a sequence but those of the hit's shared blocks."""
        num_fresh = self._cache.blocks_for(len(sequence.token_ids)) - len(hit.prefix.nodes)
        num_acquired = sum(node.ref_count == 0 for node in set(hit.nodes))
        return self.num_available - num_acquired >= num_fresh

    def allocate(self, sequence: Sequence, hit: PrefixHit) -> None:
        """Gives a sequence without blocks what `match_prefix` found; `can_allocate` must hold."""
        prefix, kv = hit.prefix, sequence.kv
        self._tree.acquire(hit.nodes)
        kv.nodes = list(prefix.nodes)
        kv.block_table = [node.block for node in prefix.nodes]
        if prefix.source is not None:
            self._copy_source(kv, prefix.source, prefix.num_tokens)
        kv.num_computed_tokens = kv.num_indexed_tokens = prefix.num_tokens
        if hit.layer_hit is not None:
            self._copy_layers(kv, hit.layer_hit)
        self._restart_first_pass(sequence, hit)
        num_resumed = len(kv.partial_states.states) if kv.partial_states else 0
        self.tokens_looked_up += len(sequence.token_ids)
        self.tokens_reused += prefix.num_tokens
        self.tokens_resumed += num_resumed
        if kv.num_cached_tokens is None:
            kv.num_cached_tokens, kv.num_resumed_tokens = prefix.num_tokens, num_resumed

    def _restart_first_pass(self, sequence: Sequence, hit: PrefixHit) -> None:
        """Tells a first pass of the states that the hit's blocks have."""
        pooling = sequence.read_states
        if pooling is None:
            return
        num_source_tokens = hit.prefix.num_tokens - len(hit.prefix.nodes) * self.block_size
        found = hit.nodes, hit.prefix.source, num_source_tokens, pooling.layer
        if sequence.choice is not None:
            sequence.choice.restart(sequence.next_position, prefix_states(*found))
        else:
            pooling.restart(sequence.next_position, prefix_sum(*found))

    def _copy_source(self, kv: KVState, source: Node, num_tokens: int) -> None:
        """Copies the block with the end of a prefix, and its states if they cover the positions of the prefix."""
        start = len(kv.block_table) * self.block_size
        # If the source itself is evicted for the copy its block is the one taken, and still holds what it held.
        kv.block_table += self.take_blocks(1)
        self._cache.copy(source.block, kv.block_table[-1])
        for layer, states in source.states.items():
            if len(states) >= num_tokens - start:
                kv.cached_states[layer] = LayerStates(layer, start, states[: num_tokens - start])
        self._tree.touch(source)

    def _copy_layers(self, kv: KVState, hit: LayerHit) -> None:
        """Copies the lower layers of the blocks of a hit, and releases them."""
        kv.block_table += self.take_blocks(hit.first_block + len(hit.nodes) - len(kv.block_table))
        sources = [node.block for node in hit.nodes]
        self._cache.copy_below(hit.layer, sources, kv.block_table[hit.first_block :])
        states = hit.states(self.block_size)
        kv.cached_states[hit.layer] = states
        kv.partial_states = states.since(kv.num_computed_tokens)
        self._tree.release(hit.path)

    def swap_in_shared(self, sequence: Sequence) -> None:
        """Replaces blocks that the sequence computed in some layers by shared ones that have all layers."""
        kv = sequence.kv
        if not self._share or kv.partial_states is None or kv.nodes:
            return
        nodes = self._lookup.match_tree(sequence).nodes
        before, after = kv.num_computed_tokens, len(nodes) * self.block_size
        if after <= before:
            return
        self._tree.acquire(nodes)
        for index, node in enumerate(nodes):
            kv.copy_states(node, index * self.block_size, (index + 1) * self.block_size)
        self._cache.release(kv.block_table[: len(nodes)])
        kv.nodes = list(nodes)
        kv.block_table[: len(nodes)] = [node.block for node in nodes]
        kv.num_computed_tokens = kv.num_indexed_tokens = kv.num_cached_tokens = after
        kv.partial_states = kv.partial_states.since(after)
        self.tokens_reused += after - before

    def num_missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Number of blocks that a sequence lacks to hold its first `num_tokens` tokens."""
        return max(0, self._cache.blocks_for(num_tokens) - len(sequence.kv.block_table))

    def append_blocks(self, sequence: Sequence, num_tokens: int) -> None:
        """Extends a block table to hold the first `num_tokens` tokens; there must be enough blocks."""
        sequence.kv.block_table += self.take_blocks(self.num_missing_blocks(sequence, num_tokens))

    def take_blocks(self, count: int) -> list[int]:
        """Takes fresh blocks, evicting nodes if the free list is too short; there must be enough of both."""
        while count > self._cache.num_free:
            node = self._tree.evict()
            if node is None:
                raise RuntimeError(f"{count} blocks asked for, {self._cache.num_free} are to be had")
            self.tokens_evicted += len(node.key) // KEY_BYTES
            self._cache.release([node.block])
        return self._cache.allocate(count)

    def return_blocks(self, blocks: list[int]) -> None:
        """Puts blocks that are not in the prefix tree on the free list."""
        self._cache.release(blocks)

    def cache_blocks(self, sequence: Sequence) -> None:
        """Adds the blocks that a sequence filled since the last call to the prefix tree."""
        kv = sequence.kv
        if kv.num_computed_tokens == kv.num_indexed_tokens:
            return
        before, kv.num_indexed_tokens = kv.num_indexed_tokens, kv.num_computed_tokens
        self.tokens_computed += kv.num_computed_tokens - before
        if not self._is_cacheable(sequence):
            return
        num_full = kv.num_computed_tokens // self.block_size
        num_full_nodes = len(kv.nodes) - 1 if self._has_partial_node(kv) else len(kv.nodes)
        if num_full > num_full_nodes:
            self._remove_partial(kv)
            while len(kv.nodes) < num_full:
                self._insert(sequence, (len(kv.nodes) + 1) * self.block_size)
        if before < sequence.num_prompt_tokens <= kv.num_computed_tokens:
            self._insert_partial(sequence)

    def free(self, sequence: Sequence) -> None:
        """Takes a sequence's blocks away; what is computed stays in the prefix tree until it is evicted."""
        self.cache_blocks(sequence)
        kv = sequence.kv
        if sequence.exit_layer is not None and kv.partial_states is not None:
            self.tokens_computed += kv.partial_states.stop - kv.num_computed_tokens - kv.num_resumed_tokens
        if self._is_cacheable(sequence) and kv.num_computed_tokens:
            self._remove_partial(kv)
            self._insert_partial(sequence)
        self._tree.release(kv.nodes)
        self._cache.release(kv.block_table[len(kv.nodes) :])
        kv.reset()

    def _is_cacheable(self, sequence: Sequence) -> bool:
        """Whether a sequence's blocks may enter the prefix tree: a first pass that exits early leaves out layers."""
        return self._share and sequence.exit_layer is None

    def _has_partial_node(self, kv: KVState) -> bool:
        """Whether the last node is a block that the sequence, its only user, still writes to."""
        return kv.last_node is not None and len(kv.last_node.key) < self.block_size * KEY_BYTES

    def _remove_partial(self, kv: KVState) -> None:
        """Makes a partial last node private again: it comes back with the positions computed since."""
        if self._has_partial_node(kv):
            self._tree.remove(kv.nodes.pop())

    def _insert_partial(self, sequence: Sequence) -> None:
        """Adds the computed part of the last block to the prefix tree, unless the tree has those positions."""
        kv = sequence.kv
        start = len(kv.nodes) * self.block_size
        if self._has_partial_node(kv) or kv.num_computed_tokens == start:
            return
        key = self._lookup.key_between(sequence, start, kv.num_computed_tokens)
        if not self._tree.covers(kv.last_node, key):
            self._insert(sequence, kv.num_computed_tokens)

    def _insert(self, sequence: Sequence, stop: int) -> None:
        """Makes the next block, whose positions end at `stop`, a node.

        If another sequence has computed the same meanwhile, its block replaces this one: the bits are equal.
        """
        kv = sequence.kv
        index = len(kv.nodes)
        start = index * self.block_size
        key = self._lookup.key_between(sequence, start, stop)
        node = self._tree.insert(kv.last_node, key, kv.block_table[index])
        if node.block != kv.block_table[index]:
            self._cache.release([kv.block_table[index]])
            kv.block_table[index] = node.block
        kv.copy_states(node, start, stop)
        if stop % self.block_size == 0:
            kv.drop_states(stop)
        self._lookup.add_donor(sequence.mixture)
        kv.nodes.append(node)
