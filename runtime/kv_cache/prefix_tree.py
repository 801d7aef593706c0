"""The prefix tree: blocks of keys and values, found by what they were computed from.

    keys of all positions up to a block's end  ->  the block

A key (`prefix_key.py`) names a position's token and what computed it. A node is a block, its key the keys of the
block's positions, and the path to it all positions before. Keys are compared whole, so that no hash can
collide. A node's children lie sorted: the one that shares the longest beginning with a key stands next to
where the key belongs, and a lookup takes a bisection a block however many prompts there are.

The tree knows block numbers, not tensors; a block number stands for the block in all layers.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from torch import Tensor

from .prefix_key import KEY_BYTES, common_prefix_length
from .running_sums import Sum

# Release time that sorts a superseded block first for eviction.
_SUPERSEDED = -1


class Node:
    """A block of the tree.

    parent: None for the root and for a node that is no longer in the tree.
    key: keys of its positions; fewer than a block holds if it was computed or ended there. Only full blocks have
        children.
    block: its number.
    child_keys, children: the keys of the children, sorted, and the children in the same order.
    ref_count: number of sequences that read or write the block; it is evicted only at 0.
    released: time of its last release.
    sums: sums of the states of all positions up to the block's end, by the layer that they enter (prefix_sums.py).
    states: states of the first of its positions [positions, hidden], by the layer that they enter: where tokens may
        resume (layer_reuse.py), or first passes pool (prefix_sums.py).
    """

    __slots__ = (
        "block",
        "child_keys",
        "children",
        "key",
        "parent",
        "ref_count",
        "released",
        "states",
        "sums",
    )

    def __init__(self, parent: "Node | None", key: bytes, block: int) -> None:
        self.parent = parent
        self.key = key
        self.block = block
        self.child_keys: list[bytes] = []
        self.children: list[Node] = []
        self.ref_count = 0
        self.released = 0
        self.sums: dict[int, Sum] = {}
        self.states: dict[int, Tensor] = {}


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest beginning of a sequence that the tree has; nothing by default.

    nodes: full blocks, which can be shared.
    source: the block after them, of which the first positions can be copied; None if no child fits.
    num_tokens: positions of both together.
    """

    nodes: list[Node] = field(default_factory=list)
    source: Node | None = None
    num_tokens: int = 0


class PrefixTree:
    """Nodes in use by sequences, and unused ones that are evicted when blocks are needed: the least recently used
    leaf first.

    A sequence holds a reference to every node of its path. So no node's ref count is above its parent's, and every
    node with a count of 0 can be evicted sooner or later.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._block_bytes = block_size * KEY_BYTES
        self._root = Node(None, b"", -1)
        self._clock = 0
        self._evictable: list[tuple[int, int, Node]] = []
        self._serial = count()
        self.num_nodes = 0
        self.num_evictable = 0

    def match(self, keys: bytes) -> PrefixMatch:
        """Finds the longest beginning of a sequence of keys that the tree has."""
        node, nodes = self._root, []
        for start in range(0, len(keys), self._block_bytes):
            key = keys[start : start + self._block_bytes]
            index = bisect_left(node.child_keys, key)
            if (
                index < len(node.child_keys)
                and node.child_keys[index] == key
                and len(key) == self._block_bytes
            ):
                node = node.children[index]
                nodes.append(node)
                continue
            source, num_tokens = _closest(node, key, index)
            return PrefixMatch(nodes, source, len(nodes) * self._block_size + num_tokens)
        return PrefixMatch(nodes, None, len(nodes) * self._block_size)

    def covers(self, parent: Node | None, key: bytes) -> bool:
        """Whether a child of this parent (None: the root) has all positions of a key."""
        keys = (parent or self._root).child_keys
        index = bisect_left(keys, key)
        return index < len(keys) and keys[index].startswith(key)

    def insert(self, parent: Node | None, key: bytes, block: int) -> Node:
        """Adds a block below a parent (None: the root) that the caller holds; returns its node, acquired.

        If the tree has the key already it returns that node, whose block is another one.
        """
        parent = parent or self._root
        index = bisect_left(parent.child_keys, key)
        if index < len(parent.child_keys) and parent.child_keys[index] == key:
            node = parent.children[index]
            self.acquire([node])
            return node
        if index and key.startswith(parent.child_keys[index - 1]):
            self._supersede(parent.children[index - 1])
        node = Node(parent, key, block)
        node.ref_count = 1
        parent.child_keys.insert(index, key)
        parent.children.insert(index, node)
        self.num_nodes += 1
        return node

    def remove(self, node: Node) -> None:
        """Removes a childless node that the caller alone holds; the block is the caller's again."""
        if node.ref_count != 1 or node.children:
            raise RuntimeError("the node is shared: only its single holder may remove it")
        node.ref_count = 0
        self._unlink(node)

    def acquire(self, nodes: Iterable[Node]) -> None:
        """Adds a reference to each node, which keeps it from eviction until it is released."""
        for node in nodes:
            if node.ref_count == 0:
                self.num_evictable -= 1
            node.ref_count += 1

    def release(self, nodes: list[Node]) -> None:
        """Drops a reference to each node of a path, and marks them as used just now."""
        self._clock += 1
        for node in reversed(nodes):
            if node.ref_count == 0:
                raise RuntimeError(f"block {node.block} is released and nobody holds it")
            node.ref_count -= 1
            node.released = self._clock
            if node.ref_count == 0:
                self.num_evictable += 1
            self._offer(node)
        if len(self._evictable) > 64 + 2 * self.num_nodes:
            self._evictable = [entry for entry in self._evictable if _is_valid(entry)]
            heapq.heapify(self._evictable)

    def touch(self, node: Node) -> None:
        """Marks a node as used just now if it is in the tree."""
        if node.parent is not None:
            self.acquire([node])
            self.release([node])

    def evict(self) -> Node | None:
        """Removes the least recently used leaf without references and returns it; None if there is none."""
        while self._evictable:
            entry = heapq.heappop(self._evictable)
            if _is_valid(entry):
                node = entry[2]
                parent = node.parent
                assert parent is not None
                self._unlink(node)
                self.num_evictable -= 1
                self._offer(parent)
                return node
        return None

    def _offer(self, node: Node) -> None:
        """Queues a node for eviction if it can be evicted."""
        if node.ref_count == 0 and not node.children and node.parent is not None:
            heapq.heappush(self._evictable, (node.released, next(self._serial), node))

    def _supersede(self, node: Node) -> None:
        """Sorts a node first for eviction, now that another block has all its positions."""
        if node.ref_count == 0 and node.released != _SUPERSEDED:
            node.released = _SUPERSEDED
            self._offer(node)

    def _unlink(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        index = bisect_left(parent.child_keys, node.key)
        del parent.child_keys[index], parent.children[index]
        node.parent = None
        self.num_nodes -= 1


def _is_valid(entry: tuple[int, int, Node]) -> bool:
    """Whether an entry's node can still be evicted and was not used since."""
    released, _, node = entry
    return node.ref_count == 0 and not node.children and node.parent is not None and node.released == released


def _closest(parent: Node, key: bytes, index: int) -> tuple[Node | None, int]:
    """The child that shares most positions at the beginning with a key that belongs at `index`, and how many."""
    best, most = None, 0
    for child in parent.children[max(0, index - 1) : index + 1]:
        shared = common_prefix_length(child.key, key)
        if shared > most:
            best, most = child, shared
    return best, most
