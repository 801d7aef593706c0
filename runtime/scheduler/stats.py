"""Counters of an engine: tokens computed and reused, the blocks of its cache, and steps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the engine was made, and the cache's blocks as they are now.

    tokens_computed: tokens that went through the model.
    tokens_looked_up: tokens of admitted requests; a preempted request counts again when it is admitted again.
    tokens_reused: looked-up tokens that were found in the cache.
    tokens_resumed: further ones that were found in the lower layers, and computed in the upper layers alone.
    tokens_evicted: token positions that left the cache to make room.
    preemptions: how often a request lost its blocks to an earlier one.
    blocks_in_use: blocks of running requests.
    blocks_cached: blocks that no request uses, kept for later ones.
    blocks_free: empty blocks.
    steps: batches that were launched.
    decode_steps: those of them in which every request computed one token.
    requests_running, requests_waiting: unfinished requests that have blocks now, and those that wait for them.
    wait_seconds: how long steps waited for a device; 0 on a CPU, which computes where it launches.
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
    steps: int = 0
    decode_steps: int = 0
    requests_running: int = 0
    requests_waiting: int = 0
    wait_seconds: float = 0.0
