"""The workload of the serving benches: random prompts of equal length under random experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from zweave.checkpoint import ModelConfig
from zweave.experts import Expert

# Far more than training changes z, so that an answer under another expert, or none, counts as wrong.
SPREAD = 0.2
# Special tokens, which the chat template gives a meaning, stand at the beginning of the vocabulary.
FIRST_PLAIN_TOKEN = 100


Chosen = TypeVar("Chosen")


@dataclass(frozen=True, slots=True)
class Workload:
    """`requests` prompts of `prompt` tokens, each answered greedily by `new` tokens, whatever these are."""

    requests: int = 16
    prompt: int = 64
    new: int = 64

    def labels(self) -> dict[str, int]:
        """Its sizes, as JSON rows have them."""
        return {"requests": self.requests, "prompt": self.prompt, "new": self.new}

    @property
    def new_tokens(self) -> int:
        return self.requests * self.new

    def prompts(self, config: ModelConfig) -> list[list[int]]:
        """Token ids, the same on every call."""
        low = min(FIRST_PLAIN_TOKEN, config.vocab_size - 1)
        generator = torch.Generator().manual_seed(0)
        size = (self.requests, self.prompt)
        return torch.randint(low, config.vocab_size, size, generator=generator).tolist()


def turns(adapters: Sequence[Chosen], requests: int) -> list[list[Chosen]]:
    """The adapter of each request, turn after turn, until all were used; turns without adapters hold nothing."""
    starts = range(0, max(1, len(adapters)), max(1, requests))
    return [
        [adapters[(start + index) % len(adapters)] for index in range(requests)] if adapters else []
        for start in starts
    ]


def random_expert(config: ModelConfig, seed: int, leading: int = 1) -> Expert:
    """An expert whose z lie around 1 in the first R / leading components, and are 1 in the others.

    Raises ZweaveError if this version of zweave knows no experts of leading components.
    """
    generator = torch.Generator().manual_seed(seed)
    z = {}
    for module, shape in config.adapted_shapes().items():
        rank = min(shape)
        z[module] = torch.ones(rank)
        kept = max(1, rank // leading)
        z[module][:kept] += SPREAD * torch.randn(kept, generator=generator)
    support = "full" if leading == 1 else f"leading:R/{leading}"
    return Expert(z=z, support=support)
