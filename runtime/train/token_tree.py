"""A trie of token sequences: shared prefixes are computed once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

ROOT = -1


@dataclass(slots=True)
class TokenTree:
    """A trie of token ids; a node attends to itself and its ancestors, and its position is its depth.

    Nodes are numbered in the order in which they are added, so a parent comes before its children.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int], node: int = ROOT) -> int:
        """Adds a path below `node`, sharing existing nodes, and returns its last node."""
        for token in tokens:
            child = self.children.get((node, token))
            if child is None:
                child = self.children[node, token] = len(self.tokens)
                self.depths.append(0 if node == ROOT else self.depths[node] + 1)
                self.tokens.append(token)
                self.parents.append(node)
            node = child
        return node

    def seal(self) -> None:
        """Paths added from now on share no node of before: those were computed in another way."""
        self.children.clear()

    def path(self, node: int) -> list[int]:
        """The node and its ancestors, the root's child first."""
        path = []
        while node != ROOT:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def trunk(self) -> list[int]:
        """The nodes that all others descend from, from the root down."""
        count: dict[int, int] = {}
        only: dict[int, int] = {}
        for node, parent in enumerate(self.parents):
            count[parent] = count.get(parent, 0) + 1
            only[parent] = node
        trunk, node = [], ROOT
        while count.get(node) == 1:
            node = only[node]
            trunk.append(node)
        return trunk

    def branches(self) -> list[list[int]]:
        """The nodes below the trunk, a list for each of the trunk's children, in order."""
        trunk = self.trunk()
        end, inside = (trunk[-1] if trunk else ROOT), set(trunk)
        branch_of: dict[int, int] = {}
        branches: list[list[int]] = []
        for node, parent in enumerate(self.parents):
            if node in inside:
                continue
            if parent == end:
                branch_of[node] = len(branches)
                branches.append([])
            else:
                branch_of[node] = branch_of[parent]
            branches[branch_of[node]].append(node)
        return branches

    def visible(self, nodes: Sequence[int]) -> npt.NDArray[np.bool_]:
        """bool [nodes, nodes]: true at (i, j) where node i attends to node j.

        nodes: with each node all of its ancestors up to the first one.
        """
        row = {node: i for i, node in enumerate(nodes)}
        visible = np.eye(len(nodes), dtype=np.bool_)
        for i, node in enumerate(nodes):
            parent = row.get(self.parents[node])
            if parent is not None:
                visible[i] |= visible[parent]
        return visible
