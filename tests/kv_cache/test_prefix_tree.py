"""The prefix tree against a model that keeps whole paths in a dictionary and looks through all of them."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from zweave.kv_cache import PrefixTree
from zweave.kv_cache.prefix_tree import Node, PrefixMatch

BLOCK = 4
Path = tuple[int, ...]


def keys(path: Path) -> bytes:
    return np.array(path, dtype=np.int64).tobytes()


def insert_path(tree: PrefixTree, path: Path, first_block: int = 0) -> list[Node]:
    nodes: list[Node] = []
    for start in range(0, len(path), BLOCK):
        key = keys(path[start : start + BLOCK])
        nodes.append(tree.insert(nodes[-1] if nodes else None, key, first_block + len(nodes)))
    return nodes


@dataclass(eq=False)
class Entry:
    block: int
    ref_count: int
    released: tuple[int, int] = (0, 0)


@dataclass
class Model:
    """All paths of the tree; those that nobody holds are evicted in the order of `released`."""

    entries: dict[Path, Entry] = field(default_factory=dict)
    clock: int = 0

    def match(self, path: Path) -> tuple[list[int], int]:
        """Blocks of whole nodes, and positions with those of the closest child after them."""
        whole = 0
        while whole + BLOCK <= len(path) and path[: whole + BLOCK] in self.entries:
            whole += BLOCK
        below = [other for other in self.entries if parent(other) == path[:whole]]
        shared = max((common(other, path) - whole for other in below), default=0)
        return [self.entries[path[:end]].block for end in range(BLOCK, whole + 1, BLOCK)], whole + shared

    def insert(self, path: Path, block: int) -> int:
        if path not in self.entries:
            siblings = [other for other in self.entries if parent(other) == parent(path)]
            before = sorted((other for other in siblings if keys(other) < keys(path)), key=keys)
            if before and path[: len(before[-1])] == before[-1]:
                superseded = self.entries[before[-1]]
                if superseded.ref_count == 0 and superseded.released[0] != -1:
                    self.clock += 1
                    superseded.released = (-1, self.clock)
            self.entries[path] = Entry(block, 0)
        self.entries[path].ref_count += 1
        return self.entries[path].block

    def release(self, paths: list[Path]) -> None:
        self.clock += 1
        for path in paths:
            self.entries[path].ref_count -= 1
            self.entries[path].released = (self.clock, 0)

    def evict(self) -> int | None:
        inner = {parent(path) for path in self.entries}
        free = [path for path, entry in self.entries.items() if not entry.ref_count and path not in inner]
        if not free:
            return None
        return self.entries.pop(min(free, key=lambda path: self.entries[path].released)).block


def parent(path: Path) -> Path:
    return path[: (len(path) - 1) // BLOCK * BLOCK]


def common(one: Path, other: Path) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


class Traffic:
    """Random sequences over a few blocks, on the tree and on the model at once."""

    def __init__(self, seed: int, budget: int) -> None:
        self.rng = random.Random(seed)
        self.tree, self.model = PrefixTree(BLOCK), Model()
        self.budget = budget
        self.free = list(range(budget))
        self.running: list[tuple[Path, list[Node]]] = []
        self.evictions = 0
        self.hits = 0

    def step(self) -> None:
        choice = self.rng.random()
        if len(self.running) < 6 and choice < 0.3:
            self.start()
        elif self.running and choice < 0.85:
            self.grow()
        elif self.running:
            self.finish()
        held = sum(entry.ref_count > 0 for entry in self.model.entries.values())
        assert self.tree.num_nodes == len(self.model.entries) == self.budget - len(self.free)
        assert self.tree.num_evictable == self.tree.num_nodes - held

    def start(self) -> None:
        length = self.rng.randint(1, 5 * BLOCK)
        path = tuple(self.rng.choice((0, 0, 0, 0, 1)) for _ in range(length))
        match = self.tree.match(keys(path))
        blocks, tokens = self.model.match(path)
        assert ([node.block for node in match.nodes], match.num_tokens) == (blocks, tokens)
        self.hits += tokens > 0
        self.tree.acquire(match.nodes)
        for end in range(BLOCK, len(blocks) * BLOCK + 1, BLOCK):
            self.model.entries[path[:end]].ref_count += 1
        self.running.append((path, list(match.nodes)))

    def grow(self) -> None:
        index = self.rng.randrange(len(self.running))
        path, nodes = self.running[index]
        if nodes and len(nodes[-1].key) < len(keys((0,) * BLOCK)):
            # As its writer does: the end is taken out and comes back longer.
            self.tree.remove(nodes.pop())
            self.free.append(self.model.entries.pop(path).block)
            path += tuple(self.rng.choice((0, 1)) for _ in range(self.rng.randint(1, 3)))
            self.running[index] = (path, nodes)
        start = len(nodes) * BLOCK
        stop = min(start + BLOCK, len(path))
        if start >= stop:
            return
        key, last = keys(path[start:stop]), nodes[-1] if nodes else None
        covered = any(
            other[:stop] == path[:stop] and parent(other) == path[:start] for other in self.model.entries
        )
        assert self.tree.covers(last, key) == covered
        if (covered and stop - start < BLOCK) or not self.make_room():
            return
        block = self.free.pop()
        node = self.tree.insert(last, key, block)
        assert self.model.insert(path[:stop], block) == node.block
        if node.block != block:
            self.free.append(block)
        nodes.append(node)

    def make_room(self) -> bool:
        if self.free:
            return True
        node = self.tree.evict()
        assert self.model.evict() == (None if node is None else node.block)
        if node is None:
            return False
        self.evictions += 1
        self.free.append(node.block)
        return True

    def finish(self) -> None:
        path, nodes = self.running.pop(self.rng.randrange(len(self.running)))
        self.tree.release(nodes)
        self.model.release([path[: (i + 1) * BLOCK] for i in range(len(nodes))])


def run_traffic(seed: int, operations: int, budget: int) -> None:
    traffic = Traffic(seed, budget)
    for _ in range(operations):
        traffic.step()
    while traffic.running:
        traffic.finish()
    assert traffic.tree.num_evictable == traffic.tree.num_nodes
    while traffic.tree.evict() is not None:
        pass
    assert traffic.tree.num_nodes == 0
    assert traffic.evictions > operations / 200
    assert traffic.hits > operations / 10


@pytest.mark.parametrize("budget", [12, 20, 40])
def test_a_hundred_thousand_operations_agree_with_the_model(budget: int) -> None:
    run_traffic(seed=budget, operations=34_000, budget=budget)


def found(match: PrefixMatch) -> tuple[int, int | None, int]:
    return len(match.nodes), None if match.source is None else match.source.block, match.num_tokens


def test_whole_blocks_are_shared_and_the_next_one_is_a_source() -> None:
    tree = PrefixTree(BLOCK)
    insert_path(tree, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
    assert found(tree.match(b"")) == (0, None, 0)
    assert found(tree.match(keys((2, 2)))) == (0, None, 0)
    assert found(tree.match(keys((1, 2, 9)))) == (0, 0, 2)
    assert found(tree.match(keys((1, 2, 3, 4)))) == (1, None, 4)
    assert found(tree.match(keys((1, 2, 3, 4, 5, 6, 7)))) == (1, 1, 7)
    assert found(tree.match(keys((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)))) == (2, 2, 10)


def test_what_two_paths_share_is_one_node() -> None:
    tree = PrefixTree(BLOCK)
    first = insert_path(tree, (1, 2, 3, 4, 5, 6, 7, 8))
    second = insert_path(tree, (1, 2, 3, 4, 5, 6, 7, 9), first_block=100)
    assert second[0] is first[0]
    assert (second[0].block, second[0].ref_count) == (0, 2)
    assert second[1].block == 101


def test_leaves_go_first_and_held_nodes_stay() -> None:
    tree = PrefixTree(BLOCK)
    old = insert_path(tree, (1,) * 12)
    new = insert_path(tree, (2,) * 8, first_block=10)
    assert tree.evict() is None
    tree.release(old)
    tree.release(new)
    tree.acquire(old[:1])
    assert [node.block for node in iter(tree.evict, None)] == [2, 1, 11, 10]
    tree.release(old[:1])
    assert [node.block for node in iter(tree.evict, None)] == [0]


def test_a_part_that_a_longer_block_holds_too_goes_before_all_others() -> None:
    tree = PrefixTree(BLOCK)
    insert_path(tree, (7, 7, 7, 7), first_block=5)
    others = insert_path(tree, (9, 9, 9, 9), first_block=6)
    part = insert_path(tree, (1, 2))
    tree.release(others)
    tree.release(part)
    insert_path(tree, (1, 2, 3), first_block=8)
    assert tree.evict() is part[0]
    assert tree.evict() is others[0]


def test_a_shared_node_cannot_be_taken_out() -> None:
    tree = PrefixTree(BLOCK)
    inner, leaf = insert_path(tree, (1, 2, 3, 4, 5))
    with pytest.raises(RuntimeError, match="shared"):
        tree.remove(inner)
    tree.acquire([leaf])
    with pytest.raises(RuntimeError, match="shared"):
        tree.remove(leaf)
    tree.release([leaf])
    tree.remove(leaf)
    assert tree.num_nodes == 1
    with pytest.raises(RuntimeError, match="nobody holds"):
        tree.release([leaf])


def test_use_without_eviction_leaves_no_trail() -> None:
    tree = PrefixTree(BLOCK)
    nodes = insert_path(tree, (1, 2, 3, 4))
    tree.release(nodes)
    for _ in range(1000):
        tree.acquire(nodes)
        tree.release(nodes)
    assert len(tree._evictable) < 100
    assert tree.evict() is nodes[0]
