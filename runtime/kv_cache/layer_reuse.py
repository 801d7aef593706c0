"""Partial prefix reuse: the layers below an expert's `first_layer` compute what the base model computes.

    keys and values of the layers below l, and the states that enter l  ->  compute the layers from l on alone

The prefix tree's blocks hold all layers. A block that another mixture computed is copied in the layers below l, and
the tokens resume at l from the states that are stored with the block's node, 4 bytes a number.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from ..experts.mixture import BASE_DIGEST
from .layer_states import LayerStates
from .prefix_key import PrefixKeys
from .prefix_tree import Node, PrefixMatch, PrefixTree

# Mixtures that are searched as donors beside the base model, the latest ones.
_MAX_DONORS = 7


@dataclass(frozen=True, slots=True)
class LayerHit:
    """Consecutive blocks whose layers below `layer` can be copied.

    layer: tokens resume here, from the states that the nodes have.
    first_block: index of the first block in the sequence. Blocks before it that are not in the prefix match are
        computed in all layers, since their states were not stored.
    path: nodes from the root of the tree to the last of the blocks.
    num_tokens: position at which the copied tokens end.
    """

    layer: int
    first_block: int
    path: list[Node]
    num_tokens: int

    @property
    def nodes(self) -> list[Node]:
        """Of the blocks."""
        return self.path[self.first_block :]

    def states(self, block_size: int) -> LayerStates:
        """The states that enter `layer`, from the beginning of the first block on."""
        start = self.first_block * block_size
        found = torch.cat([node.states[self.layer] for node in self.nodes])
        return LayerStates(self.layer, start, found[: self.num_tokens - start])


class LayerReuse:
    """Finds blocks of other mixtures in the prefix tree whose lower layers a sequence can use."""

    def __init__(self, tree: PrefixTree, keys: PrefixKeys, block_size: int) -> None:
        self._tree = tree
        self._keys = keys
        self._block_size = block_size
        self._donors: OrderedDict[str, int] = OrderedDict()

    def add_donor(self, digest: str, first_layer: int) -> None:
        """Records a mixture that adapts no layer below `first_layer` as a candidate donor of blocks."""
        self._donors[digest] = first_layer
        self._donors.move_to_end(digest)
        if len(self._donors) > _MAX_DONORS:
            self._donors.popitem(last=False)

    def match(
        self, token_ids: Seq[int], salt: str | None, prefix: PrefixMatch, layers: Iterable[int]
    ) -> LayerHit | None:
        """The hit that saves most beyond a matched prefix; None if all save less than a block.

        layers: at which the tokens can resume. What is saved is counted in tokens times layers.
        """
        best, most = None, 0
        for hit in self._candidates(token_ids, salt, prefix, list(layers)):
            saved = hit.num_tokens - max(prefix.num_tokens, hit.first_block * self._block_size)
            if saved >= self._block_size and saved * hit.layer > most:
                best, most = hit, saved * hit.layer
        return best

    def _candidates(
        self, token_ids: Seq[int], salt: str | None, prefix: PrefixMatch, layers: Seq[int]
    ) -> Iterator[LayerHit]:
        num_shared, size = len(prefix.nodes), self._block_size
        for digest, first_layer in [*self._donors.items(), (BASE_DIGEST, sys.maxsize)]:
            usable = [layer for layer in layers if layer <= first_layer]
            if not usable:
                continue
            match = self._tree.match(self._keys.of(token_ids, salt, digest))
            nodes = match.nodes if match.source is None else [*match.nodes, match.source]
            for layer in usable:
                begin, length = _longest_run(nodes[num_shared:], layer, size)
                first_block = num_shared + begin
                num_tokens = min(first_block * size + length, match.num_tokens)
                stop_block = -(-num_tokens // size)
                if first_block < stop_block:
                    yield LayerHit(layer, first_block, nodes[:stop_block], num_tokens)


def _longest_run(nodes: Seq[Node], layer: int, block_size: int) -> tuple[int, int]:
    """The longest run of positions whose states are stored: the index of its first node, and its length."""
    best, begin, length = (0, 0), 0, 0
    for index, node in enumerate(nodes):
        num_states = len(node.states.get(layer, ()))
        length += num_states
        best = max(best, (begin, length), key=lambda run: run[1])
        if num_states < block_size:
            begin, length = index + 1, 0
    return best
