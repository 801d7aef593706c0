"""W = U diag(sigma) Vt, computed once and cached."""

from .decomposition import Decomposition, decompose

__all__ = [
    "Decomposition",
    "decompose",
]
