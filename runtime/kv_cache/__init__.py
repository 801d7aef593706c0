"""Keys and values in blocks, and how they are found again. Knows no request."""

from .block_pool import KVCache
from .kv_state import KVState
from .prefix_tree import PrefixTree

__all__ = [
    "KVCache",
    "KVState",
    "PrefixTree",
]
