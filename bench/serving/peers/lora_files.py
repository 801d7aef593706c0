"""Random LoRA adapters on disk, as PEFT writes them, for the peers that serve LoRA."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from zweave.io.tensor_file import open_tensors, save_tensors

from ..reference_model import Changes
from .peer_providers import LORA_RANK, LORA_STD

_PREFIX = "base_model.model."


def write_lora(
    directory: Path, shapes: Mapping[str, tuple[int, int]], seed: int, rank: int = LORA_RANK
) -> Path:
    """An adapter of all matrices, B random too: of rank 16 it changes the answers as much as a random expert does.

    One of another rank adds a product of the same size.
    """
    std = LORA_STD * (LORA_RANK / rank) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        a = torch.randn(rank, columns, generator=generator) / (3 * columns) ** 0.5
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = std * torch.randn(rows, rank, generator=generator)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({module.rpartition(".")[2] for module in shapes}),
    }
    directory.mkdir(parents=True)
    save_tensors(directory / "adapter_model.safetensors", tensors, {"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def lora_changes(directory: Path, base: Mapping[str, Tensor]) -> Changes:
    """W + B A of an adapter, for the reference model, whose base weights are given."""
    changes = {}
    with open_tensors(directory / "adapter_model.safetensors") as handle:
        for module, weight in base.items():
            a, b = (handle.get_tensor(f"{_PREFIX}{module}.lora_{part}.weight") for part in "AB")
            changes[module] = weight + b @ a
    return changes
