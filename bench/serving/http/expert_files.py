"""Many experts on the disk, small enough that ten thousand of them are soon written."""

from pathlib import Path

from zweave.checkpoint import ModelConfig
from zweave.checkpoint.module_name import layer_of
from zweave.experts import Expert

from ..workload import random_expert


def write_experts(folder: Path, config: ModelConfig, count: int) -> list[str]:
    """Writes experts that adapt the last layer alone, none like another; returns their names."""
    whole = random_expert(config, 0)
    last = {module: z for module, z in whole.z.items() if layer_of(module) == config.num_layers - 1}
    names = [f"e{index}" for index in range(count)]
    for index, name in enumerate(names):
        Expert(z={module: z * (1 + index / 1e5) for module, z in last.items()}).save(
            folder / f"{name}.safetensors"
        )
    return names
