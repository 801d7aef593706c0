"""Sums of hidden states over a cached prefix: a first pass resumes its mean where the prefix ends.

A block of the prefix tree can be pooled if it has the states of all its positions at the pooled layer.
"""

from collections.abc import Sequence as Seq
from itertools import takewhile

from torch import Tensor

from .prefix_tree import Node, PrefixMatch
from .running_sums import Sum, running_sums


def num_summed_nodes(nodes: Seq[Node], layer: int, block_size: int) -> int:
    """Number of leading nodes that have the states that enter `layer` of all their positions."""
    has_states = (len(node.states.get(layer, ())) >= block_size for node in nodes)
    return sum(takewhile(bool, has_states))


def summed_prefix(prefix: PrefixMatch, layer: int, block_size: int) -> PrefixMatch:
    """The part of a matched prefix whose states that enter `layer` are known."""
    num_nodes = num_summed_nodes(prefix.nodes, layer, block_size)
    num_tokens = num_nodes * block_size
    source = prefix.source if num_nodes == len(prefix.nodes) else None
    if source is not None and len(source.states.get(layer, ())) >= prefix.num_tokens - num_tokens:
        return prefix
    return PrefixMatch(prefix.nodes[:num_nodes], None, num_tokens)


def prefix_sum(nodes: Seq[Node], source: Node | None, num_source_tokens: int, layer: int) -> Sum | None:
    """Sum of the states that enter `layer`; None for no positions. The nodes keep their sums.

    nodes: full blocks with all their states.
    source: the node after them, of which the first `num_source_tokens` positions are added.
    """
    total: Sum | None = None
    for node in nodes:
        if layer not in node.sums:
            node.sums[layer] = running_sums(total, node.states[layer])[-1].copy()
        total = node.sums[layer]
    if source is None:
        return total
    return running_sums(total, source.states[layer][:num_source_tokens])[-1].copy()


def prefix_states(nodes: Seq[Node], source: Node | None, num_source_tokens: int, layer: int) -> list[Tensor]:
    """The states that `prefix_sum` adds, in parts [positions, hidden]; arguments as there."""
    last = [] if source is None else [source.states[layer][:num_source_tokens]]
    return [*(node.states[layer] for node in nodes), *last]
