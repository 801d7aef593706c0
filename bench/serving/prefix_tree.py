"""How long does it take to find a prompt among many whose keys and values are cached?"""

import argparse
from functools import partial

import torch

from zweave.errors import ZweaveError
from zweave.kv_cache import PrefixTree
from zweave.kv_cache.prefix_key import KEY_BYTES, PrefixKeys

from ..harness.harness import Provider, measure
from ..harness.options import pace
from ..harness.report import Column, Report

VOCABULARY = 49_152
# So many prompts are looked up in turn: each is cold when it comes again.
LOOKED_UP = 64
COLUMNS = (
    Column("cached", "prompts", "d"),
    Column("nodes", "blocks", "d"),
    Column("tokens", "tokens", "d"),
    Column("provider", "operation"),
    Column("seconds", "us", ".1f", 1e6),
)


class Cached:
    """A tree that holds `count` prompts of `tokens` tokens, the first `shared` of them the same."""

    def __init__(self, count: int, tokens: int, shared: int, block_size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.prompts = torch.randint(VOCABULARY, (count, tokens), generator=generator)
        self.prompts[:, :shared] = self.prompts[0, :shared].clone()
        self.tree = PrefixTree(block_size)
        self._keys = PrefixKeys()
        width = block_size * KEY_BYTES
        for prompt in self.prompts:
            keys = self.keys(prompt.tolist())
            nodes = self.tree.match(keys).nodes
            self.tree.acquire(nodes)
            for start in range(len(nodes) * width, len(keys), width):
                parent = nodes[-1] if nodes else None
                nodes.append(self.tree.insert(parent, keys[start : start + width], self.tree.num_nodes))
            self.tree.release(nodes)

    def keys(self, tokens: list[int]) -> bytes:
        """As a new request's: extended from nothing."""
        keys = bytearray()
        self._keys.extend(keys, tokens, salt=None, digest="0" * 64)
        return bytes(keys)

    def found(self, tokens: list[int]) -> int:
        return self.tree.match(self.keys(tokens)).num_tokens

    def hold_and_release(self, tokens: list[int]) -> None:
        nodes = self.tree.match(self.keys(tokens)).nodes
        self.tree.acquire(nodes)
        self.tree.release(nodes)


def run(args: argparse.Namespace) -> Report:
    if not 0 <= args.shared <= args.tokens:
        raise ZweaveError(f"--shared must be from 0 to --tokens ({args.tokens}), not {args.shared}")
    cached = Cached(args.cached, args.tokens, args.shared, args.block_size)
    order = torch.randperm(args.cached, generator=torch.Generator().manual_seed(1))[:LOOKED_UP]
    known = [cached.prompts[index].tolist() for index in order]
    half = args.tokens // 2
    changed = [[*prompt[:half], *(token + VOCABULARY for token in prompt[half:])] for prompt in known]
    labels = {"cached": args.cached, "nodes": cached.tree.num_nodes, "tokens": args.tokens}

    def provider(name: str, prompts: list[list[int]], wanted: int, work: str = "found") -> Provider:
        def error() -> float:
            return max(abs(cached.found(prompt) - wanted) for prompt in prompts)

        calls = [partial(getattr(cached, work), prompt) for prompt in prompts]
        return Provider(name, calls, error, limit=0, labels=labels)

    outcomes = measure(
        [
            provider("look up", known, args.tokens),
            provider("look up, second half is new", changed, half),
            provider("look up, hold, release", known, args.tokens, "hold_and_release"),
        ],
        pace(args),
    )
    title = f"Prompts of which {args.shared} tokens are the same, blocks of {args.block_size}"
    return Report("prefix-tree", title, COLUMNS, [outcome.row() for outcome in outcomes])
