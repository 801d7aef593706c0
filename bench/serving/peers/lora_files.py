"""Random LoRA adapters on disk, as PEFT writes them, for the peers that serve LoRA."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from zweave.adapters.compression.compressed import CompressedLora, CompressedLoras
from zweave.adapters.compression.compressed_file import load_compressed, save_compressed
from zweave.adapters.compression.compressed_matrix import DiagonalMatrix
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


def write_compressed(
    path: Path, shapes: Mapping[str, tuple[int, int]], adapters: int, components: int
) -> Path:
    """Adapters over a random basis of K components, each with random singular values: as much as `write_lora` adds.

    Random adapters have no basis in common, and what a fit leaves of them would hardly change an answer.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    matrices = {}
    for module, (rows, columns) in shapes.items():
        std = LORA_STD * (LORA_RANK * rows / (3 * components)) ** 0.5
        matrices[module] = DiagonalMatrix(
            normalize(draw(rows, components), dim=0),
            normalize(draw(components, columns), dim=1),
            std * draw(adapters, components),
            torch.zeros(adapters),
        )
    entries = tuple(
        CompressedLora(
            name=f"adapter{index}", cluster=0, digest=f"{index:064x}", rank=LORA_RANK, scope="always",
            invocation_tokens=(), description="", prompt_template="", error=0.0,
        )
        for index in range(adapters)
    )  # fmt: skip
    save_compressed(CompressedLoras("diagonal", components, 0, None, entries, (matrices,)), path)
    return path


def compressed_changes(path: Path, index: int, base: Mapping[str, Tensor]) -> Changes:
    """W + U diag(sigma) V of an adapter of a file, for the reference model."""
    lora = load_compressed(path).lora(index)
    return {module: weight + lora.pairs[module].b @ lora.pairs[module].a for module, weight in base.items()}
