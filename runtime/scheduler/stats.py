"""What an engine has computed and reused so far, and where its cache stands."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the engine was made, and of blocks as they are now.

    tokens_computed: tokens that went through the model.
    tokens_looked_up: tokens of requests when they were taken up, once more after each preemption.
    tokens_reused: how many of these were found in the cache. tokens_resumed: how many more were found in the
        layers below one and computed from there on.
    tokens_evicted: token positions that left the cache to make room.
    preemptions: how often a request lost its blocks to an earlier one.
    blocks_in_use: held by requests. blocks_cached: held by none and kept for later. blocks_free: empty.
    """

    tokens_computed: int
    tokens_looked_up: int
    tokens_reused: int
    tokens_resumed: int
    tokens_evicted: int
    preemptions: int
    blocks_in_use: int
    blocks_cached: int
    blocks_free: int
