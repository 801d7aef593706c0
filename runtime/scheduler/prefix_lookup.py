"""What the prefix cache has of a sequence: its first tokens whole, and tokens after them in the lower layers."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from ..experts.resolved_mixture import ResolvedMixture
from ..kv_cache.layer_reuse import LayerHit, LayerReuse
from ..kv_cache.prefix_key import KEY_BYTES, PrefixKeys
from ..kv_cache.prefix_sums import num_summed_nodes, summed_prefix
from ..kv_cache.prefix_tree import Node, PrefixMatch, PrefixTree
from .pooling import Pooling
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """What the cache has of a sequence.

    prefix: its first tokens, in all layers.
    layer_hit: tokens after them, in the layers below one; None for no such tokens.
    """

    prefix: PrefixMatch
    layer_hit: LayerHit | None = None

    @property
    def nodes(self) -> list[Node]:
        """Nodes that must not be evicted before their blocks are shared or copied: whole paths."""
        return self.prefix.nodes + (self.layer_hit.path if self.layer_hit else [])


class PrefixLookup:
    """Looks sequences up in a prefix tree."""

    def __init__(self, tree: PrefixTree, block_size: int) -> None:
        self._tree = tree
        self._block_size = block_size
        self._keys = PrefixKeys()
        self._layer_reuse = LayerReuse(tree, self._keys, block_size)

    def prefix_key(self, sequence: Sequence) -> bytearray:
        """Keys of all tokens of a sequence of which it is known what computes them."""
        key, salt, tokens = sequence.kv.prefix_key, sequence.request.salt, sequence.token_ids_with_mixture
        for stop, mixture in sequence.earlier:
            self._keys.extend(key, tokens[:stop], salt, mixture.digest, sequence.adapted_from)
        self._keys.extend(key, tokens, salt, sequence.mixture.digest, sequence.adapted_from)
        return key

    def key_between(self, sequence: Sequence, start: int, stop: int) -> bytes:
        """Keys of the tokens from `start` to before `stop`."""
        return bytes(self.prefix_key(sequence)[start * KEY_BYTES : stop * KEY_BYTES])

    def add_donor(self, mixture: ResolvedMixture) -> None:
        """Records a mixture that leaves lower layers alone as a candidate donor of blocks."""
        if mixture.parts and mixture.first_layer:
            self._layer_reuse.add_donor(mixture.digest, mixture.first_layer)

    def match(self, sequence: Sequence, resume_layers: Seq[int]) -> PrefixHit:
        """Finds what the tree has of a sequence but for its last token.

        A first pass needs the states at the pooled layer, too: blocks without them are no hit.
        resume_layers: layers at which the sequence can resume.
        """
        pooling = sequence.read_states
        if pooling is None:
            prefix = self.match_tree(sequence)
            return PrefixHit(prefix, self._match_layers(sequence, prefix, resume_layers))
        if pooling.prompt_kv_reusable:
            return PrefixHit(summed_prefix(self.match_tree(sequence), pooling.layer, self._block_size))
        return PrefixHit(PrefixMatch(), self._match_pooled(sequence, pooling, resume_layers))

    def match_tree(self, sequence: Sequence) -> PrefixMatch:
        """Finds the beginning of a sequence that the tree has in all layers, without the last token to compute."""
        num_bytes = (sequence.num_lookup_tokens - 1) * KEY_BYTES
        return self._tree.match(bytes(self.prefix_key(sequence)[:num_bytes]))

    def _match_layers(self, sequence: Sequence, prefix: PrefixMatch, layers: Seq[int]) -> LayerHit | None:
        """The best hit at one of these layers below which the whole prompt is the base model's."""
        usable = [layer for layer in layers if sequence.base_until(layer) == sequence.num_prompt_tokens]
        if not usable:
            return None
        token_ids = sequence.token_ids[: sequence.num_target_tokens]
        return self._layer_reuse.match(token_ids, sequence.request.salt, prefix, usable)

    def _match_pooled(self, sequence: Sequence, pooling: Pooling, layers: Seq[int]) -> LayerHit | None:
        """For a first pass that exits early: full blocks with the states at its exit and at the pooled layer."""
        exit_layer = pooling.exit_layer
        if exit_layer is None or exit_layer not in layers:
            return None
        hit = self._match_layers(sequence, PrefixMatch(), [exit_layer])
        if hit is None or hit.first_block:
            return None
        num_tokens = min(hit.num_tokens, sequence.num_target_tokens - 1)
        nodes = hit.nodes[: num_tokens // self._block_size]
        nodes = nodes[: num_summed_nodes(nodes, pooling.layer, self._block_size)]
        return LayerHit(exit_layer, 0, nodes, len(nodes) * self._block_size) if nodes else None
