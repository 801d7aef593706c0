"""The prefix tree: blocks of keys and values, found by what they were computed from.

    symbols of all positions up to a block's end  ->  the block

A symbol (`prefix_key.py`) names a position's token and what computed it. A node is a block, its key the symbols of
the block's positions, and the path to it all positions before. Keys are compared whole, so that no hash can
collide. A node's children lie sorted: the one that shares the longest beginning with a key stands next to
where the key belongs, and a lookup takes a bisection a block however many prompts there are.

The tree knows block numbers, not tensors: one tree serves the blocks of one range of layers.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from .running_sums import Sum

SYMBOL = 8  # bytes

# Time of release of a block that another one holds all positions of.
_SUPERSEDED = -1


class Node:
    """A block of the tree.

    key: symbols of its positions; fewer than a block has if it was computed or ended there. Only blocks
        whose key is whole have children.
    holders: how many sequences read or write the block; it is evicted only when there are none.
    sums: of the states of all positions up to the block's end, by the layer that they enter (running_sums.py).
    states: those of the first of its positions [positions, hidden], by the layer that they enter: of those that may go
        on there (layer_reuse.py), or be summed up (block_manager.py).
    """

    __slots__ = ("block", "children", "holders", "key", "keys", "parent", "released", "states", "sums")

    def __init__(self, parent: "Node | None", key: bytes, block: int) -> None:
        self.parent = parent
        self.key = key
        self.block = block
        self.keys: list[bytes] = []
        self.children: list[Node] = []
        self.holders = 0
        self.released = 0
        self.sums: dict[int, Sum] = {}
        self.states: dict[int, Tensor] = {}


@dataclass(frozen=True, slots=True)
class Match:
    """What the tree has of a sequence: nodes, whole blocks that may be shared, and the node of which the
    first positions can be copied. tokens: positions of both together."""

    nodes: list[Node]
    source: Node | None
    tokens: int


class PrefixTree:
    """Nodes that sequences hold, and nodes that nobody holds and that are evicted when blocks are wanted:
    leaves first, the longest unused of them.

    A sequence holds every node of its path, so no node is held more often than its parent, and every node
    that nobody holds can be evicted sooner or later.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._width = block_size * SYMBOL
        self._root = Node(None, b"", -1)
        self._clock = 0
        self._evictable: list[tuple[int, int, Node]] = []
        self._serial = count()
        self.num_nodes = 0
        self.num_unheld = 0

    def match(self, symbols: bytes) -> Match:
        """The longest beginning of the symbols that the tree has."""
        node, nodes = self._root, []
        for start in range(0, len(symbols), self._width):
            key = symbols[start : start + self._width]
            index = bisect_left(node.keys, key)
            if index < len(node.keys) and node.keys[index] == key and len(key) == self._width:
                node = node.children[index]
                nodes.append(node)
                continue
            source, tokens = _closest(node, key, index)
            return Match(nodes, source, len(nodes) * self._block_size + tokens)
        return Match(nodes, None, len(nodes) * self._block_size)

    def covers(self, parent: Node | None, key: bytes) -> bool:
        """Whether a child of this parent (None: the root) has all positions of a key."""
        keys = (parent or self._root).keys
        index = bisect_left(keys, key)
        return index < len(keys) and keys[index].startswith(key)

    def insert(self, parent: Node | None, key: bytes, block: int) -> Node:
        """Adds a block below a parent (None: the root) that the caller holds, and returns its node, held.

        If the tree has the key already that node is returned, and its block is another one.
        """
        parent = parent or self._root
        index = bisect_left(parent.keys, key)
        if index < len(parent.keys) and parent.keys[index] == key:
            node = parent.children[index]
            self.hold([node])
            return node
        if index and key.startswith(parent.keys[index - 1]):
            self._supersede(parent.children[index - 1])
        node = Node(parent, key, block)
        node.holders = 1
        parent.keys.insert(index, key)
        parent.children.insert(index, node)
        self.num_nodes += 1
        return node

    def remove(self, node: Node) -> None:
        """Takes out a childless node that the caller alone holds; its block is the caller's."""
        if node.holders != 1 or node.children:
            raise RuntimeError("the node is shared: only its single holder may take it out")
        node.holders = 0
        self._detach(node)

    def hold(self, nodes: Iterable[Node]) -> None:
        """Keeps nodes from being evicted until they are released as often."""
        for node in nodes:
            self.num_unheld -= node.holders == 0
            node.holders += 1

    def release(self, nodes: list[Node]) -> None:
        """Gives nodes of one path back, used just now."""
        self._clock += 1
        for node in reversed(nodes):
            if node.holders == 0:
                raise RuntimeError(f"block {node.block} is released and nobody holds it")
            node.holders -= 1
            node.released = self._clock
            self.num_unheld += node.holders == 0
            self._offer(node)
        if len(self._evictable) > 64 + 2 * self.num_nodes:
            self._evictable = [entry for entry in self._evictable if _is_valid(entry)]
            heapq.heapify(self._evictable)

    def touch(self, node: Node) -> None:
        """Marks a node as used just now, if it is in the tree."""
        if node.parent is not None:
            self.hold([node])
            self.release([node])

    def evict(self) -> Node | None:
        """Takes out the longest unused of the leaves that nobody holds; None if there is none."""
        while self._evictable:
            entry = heapq.heappop(self._evictable)
            if _is_valid(entry):
                node = entry[2]
                parent = node.parent
                assert parent is not None
                self._detach(node)
                self.num_unheld -= 1
                self._offer(parent)
                return node
        return None

    def _offer(self, node: Node) -> None:
        """Makes a node known as evictable, if it is."""
        if node.holders == 0 and not node.children and node.parent is not None:
            heapq.heappush(self._evictable, (node.released, next(self._serial), node))

    def _supersede(self, node: Node) -> None:
        """Has a node evicted before all others if nobody holds it."""
        if node.holders == 0 and node.released != _SUPERSEDED:
            node.released = _SUPERSEDED
            self._offer(node)

    def _detach(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        index = bisect_left(parent.keys, node.key)
        del parent.keys[index], parent.children[index]
        node.parent = None
        self.num_nodes -= 1


def _is_valid(entry: tuple[int, int, Node]) -> bool:
    """Whether an entry's node is still evictable and was not used since."""
    released, _, node = entry
    return node.holders == 0 and not node.children and node.parent is not None and node.released == released


def _closest(parent: Node, key: bytes, index: int) -> tuple[Node | None, int]:
    """The child with the longest beginning in common with a key that belongs at `index`, and its positions."""
    best, most = None, 0
    for child in parent.children[max(0, index - 1) : index + 1]:
        shared = _common(child.key, key)
        if shared > most:
            best, most = child, shared
    return best, most


def _common(one: bytes, other: bytes) -> int:
    """How many symbols two keys have in common at their beginning."""
    length = min(len(one), len(other))
    for start in range(0, length, SYMBOL):
        if one[start : start + SYMBOL] != other[start : start + SYMBOL]:
            return start // SYMBOL
    return length // SYMBOL
