"""Hits of the lower layers."""

import torch

from zweave.experts.mixture import BASE_DIGEST
from zweave.kv_cache.layer_reuse import LayerReuse
from zweave.kv_cache.prefix_key import KEY_BYTES, PrefixKeys
from zweave.kv_cache.prefix_tree import PrefixMatch, PrefixTree

BLOCK = 4


def test_a_hit_holds_the_nodes_above_it_so_that_what_counts_as_evictable_is() -> None:
    """A node under which another is held cannot be evicted, whether its own states are used or not."""
    tree, keys, tokens = PrefixTree(BLOCK), PrefixKeys(), list(range(3 * BLOCK))
    reuse, whole = LayerReuse(tree, keys, BLOCK), keys.of(tokens, None, BASE_DIGEST)
    path = []
    for block in range(3):
        key = whole[block * BLOCK * KEY_BYTES : (block + 1) * BLOCK * KEY_BYTES]
        path.append(tree.insert(path[-1] if path else None, key, block))
    for node in path[1:]:
        node.states[1] = torch.zeros(BLOCK, 2)
    tree.release(path)
    hit = reuse.match(tokens, None, PrefixMatch(), [1])
    assert hit is not None and (hit.first_block, hit.nodes) == (1, path[1:])
    tree.acquire(hit.path)
    assert (tree.num_evictable, tree.evict()) == (0, None)
    tree.release(hit.path)
    assert tree.num_evictable == 3 and tree.evict() is path[2]
