"""What a sequence has in the key-value cache: its blocks, and how far they are computed."""

from dataclasses import dataclass, field

from torch import Tensor

from .layer_states import LayerStates
from .prefix_tree import Node


@dataclass(slots=True, eq=False)
class KVState:
    """Cache state of one sequence: held by `Sequence.kv`, its blocks assigned by the block manager.

    block_table: block numbers in the order of positions.
    nodes: the first blocks as nodes of the prefix tree; the blocks after them are private to the sequence.
    prefix_key: keys of the first tokens (prefix_key.py), extended when they are needed.
    num_computed_tokens: tokens whose keys and values are in the blocks, in all layers.
    num_indexed_tokens: computed tokens that the prefix tree has been told of.
    num_cached_tokens: tokens found in the prefix cache at the start; None before the first lookup.
    num_resumed_tokens: tokens found partially computed at the start.
    partial_states: the tokens that are computed below one layer only, as the states that enter it.
    cached_states: states that go to the prefix tree with the blocks of their tokens, by the layer that they enter.
    """

    block_table: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    prefix_key: bytearray = field(default_factory=bytearray)
    num_computed_tokens: int = 0
    num_indexed_tokens: int = 0
    num_cached_tokens: int | None = None
    num_resumed_tokens: int = 0
    partial_states: LayerStates | None = None
    cached_states: dict[int, LayerStates] = field(default_factory=dict)

    @property
    def last_node(self) -> Node | None:
        return self.nodes[-1] if self.nodes else None

    def advance(self, count: int) -> None:
        """Marks the next tokens as computed in all layers."""
        self.num_computed_tokens += count
        if self.partial_states is not None and self.num_computed_tokens >= self.partial_states.stop:
            self.partial_states = None

    def advance_below(self, layer: int, states: Tensor) -> None:
        """Marks the next tokens as computed below `layer`; `states` enter it."""
        known = self.partial_states
        if known is None:
            self.partial_states = LayerStates(layer, self.num_computed_tokens, states)
        else:
            self.partial_states = known.then(states)

    def cache_states(self, new: LayerStates) -> None:
        """Keeps states for the prefix tree, joined to those that are already kept if they are next to them."""
        known = self.cached_states.get(new.layer)
        if known is not None and known.stop == new.start:
            new = known.then(new.states)
        elif known is not None and known.start == new.stop:
            new = new.then(known.states)
        self.cached_states[new.layer] = new

    def copy_states(self, node: Node, start: int, stop: int) -> None:
        """Copies the kept states of the positions from `start` to `stop` to their node, where it knows fewer."""
        for layer, known in self.cached_states.items():
            states = known.between(start, stop)
            if len(states) > len(node.states.get(layer, ())):
                node.states[layer] = states

    def drop_states(self, stop: int) -> None:
        """Forgets the kept states of the positions before `stop`."""
        left = [rest for known in self.cached_states.values() if (rest := known.since(stop)) is not None]
        self.cached_states = {rest.layer: rest for rest in left}

    def reset(self) -> None:
        """Forgets the blocks and what was computed in them."""
        self.nodes, self.block_table = [], []
        self.num_computed_tokens = self.num_indexed_tokens = 0
        self.partial_states = None
        self.cached_states.clear()
