"""Reuse below a layer: where mixtures adapt nothing below one, what was computed there is the base's, whoever did it.

    keys and values of the layers below l, and the states that enter l  ->  the layers from l on alone

The blocks of the tree hold all layers; those of another mixture are copied as far as they are the same. The states
lie with the nodes of the blocks, 4 bytes a number.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..experts.bank import BASE_DIGEST
from .layer_states import LayerStates
from .prefix_key import Symbols
from .prefix_tree import SYMBOL, Match, Node, PrefixTree

if TYPE_CHECKING:
    from ..scheduler.sequence import Sequence

# Mixtures whose blocks are looked at beside the base's, those used last.
_MIXTURES = 7


@dataclass(frozen=True, slots=True)
class LowerMatch:
    """nodes: hold the blocks, from a sequence's block `first` on, whose layers below `layer` may be copied.

    tokens: positions up to which they do, and the states that enter the layer with them. Blocks before `first` that
    are not found whole are computed, all layers of them: their states were not kept.
    """

    layer: int
    first: int
    nodes: list[Node]
    tokens: int

    def states(self, block_size: int) -> LayerStates:
        """From the beginning of the first of the blocks on."""
        start = self.first * block_size
        found = torch.cat([node.states[self.layer] for node in self.nodes])
        return LayerStates(self.layer, start, found[: self.tokens - start])


class LowerLayers:
    """Finds blocks of the tree whose lower layers a sequence can use."""

    def __init__(self, tree: PrefixTree, symbols: Symbols, block_size: int) -> None:
        self._tree = tree
        self._symbols = symbols
        self._block_size = block_size
        self._mixtures: OrderedDict[str, int] = OrderedDict()

    def note(self, sequence: "Sequence") -> None:
        """Has the blocks of a sequence's mixture looked at for others."""
        mixture = sequence.mixture
        if mixture.parts and mixture.first_layer:
            self._mixtures[mixture.digest] = mixture.first_layer
            self._mixtures.move_to_end(mixture.digest)
            if len(self._mixtures) > _MIXTURES:
                self._mixtures.popitem(last=False)

    def match(self, sequence: "Sequence", whole: Match, layers: Iterable[int]) -> LowerMatch | None:
        """What saves most of the tokens after those that were found `whole`, at one of these layers; None if that is
        less than a block."""
        layers = [layer for layer in layers if sequence.base_until(layer) == sequence.num_prompt_tokens]
        best, most = None, 0
        for found in self._candidates(sequence, whole, layers):
            saved = found.tokens - max(whole.tokens, found.first * self._block_size)
            if saved >= self._block_size and saved * found.layer > most:
                best, most = found, saved * found.layer
        return best

    def _candidates(self, sequence: "Sequence", whole: Match, layers: Seq[int]) -> Iterator[LowerMatch]:
        first, size = len(whole.nodes), self._block_size
        for digest, adapts_from in [*self._mixtures.items(), (BASE_DIGEST, sys.maxsize)]:
            usable = [layer for layer in layers if layer <= adapts_from]
            if not usable:
                continue
            found = self._tree.match(
                self._symbols.under(sequence, digest)[: sequence.num_target_tokens * SYMBOL]
            )
            nodes = found.nodes if found.source is None else [*found.nodes, found.source]
            for layer in usable:
                begin, known = _known(nodes[first:], layer, size)
                tokens = min((first + begin) * size + known, found.tokens)
                end = -(-tokens // size)
                if first + begin < end:
                    yield LowerMatch(layer, first + begin, nodes[first + begin : end], tokens)


def _known(nodes: Seq[Node], layer: int, block_size: int) -> tuple[int, int]:
    """The longest row of positions that have their states: the node that it begins with, and its length."""
    best, begin, known = (0, 0), 0, 0
    for index, node in enumerate(nodes):
        rows = len(node.states.get(layer, ()))
        known += rows
        best = max(best, (begin, known), key=lambda run: run[1])
        if rows < block_size:
            begin, known = index + 1, 0
    return best
