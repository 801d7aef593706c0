"""Sums of hidden states over a cached prefix: a first pass resumes its mean where the prefix ends.

A block of the prefix tree can be pooled if it has the states of all its positions at the pooled layer.
"""

from collections.abc import Sequence as Seq

from .prefix_tree import Node, PrefixMatch
from .running_sums import Sum, running_sums


def num_summed_nodes(nodes: Seq[Node], layer: int, block_size: int) -> int:
    """Number of leading nodes that have the states that enter `layer`; their sums are stored with them."""
    total: Sum | None = None
    for index, node in enumerate(nodes):
        if layer not in node.sums:
            states = node.states.get(layer)
            if states is None or len(states) < block_size:
                return index
            node.sums[layer] = running_sums(total, states)[-1].copy()
        total = node.sums[layer]
    return len(nodes)


def summed_prefix(prefix: PrefixMatch, layer: int, block_size: int) -> PrefixMatch:
    """The part of a matched prefix whose states that enter `layer` are known."""
    num_nodes = num_summed_nodes(prefix.nodes, layer, block_size)
    num_tokens = num_nodes * block_size
    source = prefix.source if num_nodes == len(prefix.nodes) else None
    if source is not None and len(source.states.get(layer, ())) >= prefix.num_tokens - num_tokens:
        return prefix
    return PrefixMatch(prefix.nodes[:num_nodes], None, num_tokens)


def prefix_sum(nodes: Seq[Node], source: Node | None, num_source_tokens: int, layer: int) -> Sum | None:
    """Sum of the states that enter `layer`; None for no positions.

    nodes: whose sums are known.
    source: the node after them, of which the first `num_source_tokens` positions are added.
    """
    total = nodes[-1].sums[layer] if nodes else None
    if source is None:
        return total
    return running_sums(total, source.states[layer][:num_source_tokens])[-1].copy()
