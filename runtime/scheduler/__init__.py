"""Who runs next, and in which blocks of the cache."""

from .block_manager import BlockManager
from .chunk import Chunk
from .scheduler import Scheduler
from .sequence import Sequence
from .stats import EngineStats

__all__ = [
    "BlockManager",
    "Chunk",
    "EngineStats",
    "Scheduler",
    "Sequence",
]
