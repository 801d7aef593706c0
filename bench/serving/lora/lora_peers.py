"""Who serves LoRA adapters of one rank, and how many."""

from collections.abc import Iterator, Sequence

from ..peers.peer import Peer

ALONE = "zweave-alone"
# Resident beside the adapter of a request that is alone.
ALONE_BESIDE = (1, 32)


def batch_peers(
    parts: Sequence[str], rank: int, ours: Sequence[int], others: Sequence[int], requests: int
) -> Iterator[tuple[str, Peer]]:
    """Those that answer all requests, each with its name: ours with each number of adapters, others with fewer."""
    if "zweave" in parts:
        yield "zweave", Peer("zweave")
        for count in ours:
            yield f"zweave-lora{count}", Peer("zweave", count, "lora", rank)
    if "vllm" in parts:
        yield "vllm", Peer("vllm")
        yield "vllm-lora0", Peer("vllm", options=_vllm_options(1, rank, requests))
        for count in others:
            options = _vllm_options(count, rank, requests)
            yield f"vllm-lora{count}", Peer("vllm", count, "lora", rank, options)
    if "transformers" in parts:
        yield "transformers", Peer("transformers")
    if "peft" in parts:
        for count in others:
            yield f"peft-lora{count}", Peer("peft", count, "lora", rank)
    if "llama.cpp" in parts:
        yield "llama.cpp", Peer("llama.cpp")
        for count in others:
            yield f"llama.cpp-lora{count}", Peer("llama.cpp", count, "lora", rank)


def compressed_peers(basis: int, counts: Sequence[int]) -> Iterator[tuple[str, Peer]]:
    """Ours with each number of adapters over one basis of so many components, and without any."""
    yield "zweave", Peer("zweave")
    for count in counts:
        yield f"zweave-compressed{count}", Peer("zweave", count, "compressed", basis)


def alone_peers(rank: int) -> Iterator[tuple[str, Peer]]:
    """One request under one of few and of many resident adapters."""
    for count in ALONE_BESIDE:
        yield ALONE, Peer("zweave", count, "lora", rank)


def _vllm_options(adapters: int, rank: int, requests: int) -> dict[str, object]:
    """A batch holds no more adapters than requests; the others wait in memory."""
    return {
        "enable_lora": True,
        "max_loras": min(adapters, requests),
        "max_cpu_loras": adapters,
        "max_lora_rank": rank,
    }
