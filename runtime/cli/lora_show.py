"""`zweave expert show` of a LoRA: what PEFT's config and our record say, and how much each matrix is changed."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ..adapters.lora import Lora
from ..adapters.lora_record import LoraRecord
from ..adapters.peft_directory import CONFIG, peft_config, read_peft
from ..checkpoint.module_name import LINEARS, layer_of, linear_of
from ..experts.heatmap import grid


def lora_facts(directory: Path) -> dict[str, Any]:
    """Facts of an adapter, `matrices` last; ZweaveError if it cannot be served."""
    lora, config = read_peft(directory), peft_config(directory / CONFIG)
    record = LoraRecord.read(directory) or LoraRecord()
    facts: dict[str, Any] = {
        "kind": "lora",
        "digest": lora.digest,
        "base": config.get("base_model_name_or_path") or "unknown",
        "rank": lora.rank,
        "alpha": config["lora_alpha"],
        "rslora": bool(config.get("use_rslora")),
        "targets": _targets(lora),
        "scope": lora.scope,
        "invocation_tokens": list(lora.invocation_tokens),
        "first_layer": lora.first_layer,
        "description": lora.description,
        "bytes": sum(pair.a.nbytes + pair.b.nbytes for pair in lora.pairs.values()),
        "adapted": len(lora.pairs),
        "training": dict(record.training),
    }
    if lora.prompt_template is not None:
        facts["prompt"] = asdict(lora.prompt_template)
    return facts | {"matrices": _matrices(lora)}


def lora_maps(matrices: list[Mapping[str, Any]]) -> list[Table]:
    """The norms of what is added to each matrix, and the ranks if they differ."""
    maps = [_map(matrices, "norm", "norm of scaling B A", 3)]
    if len({matrix["rank"] for matrix in matrices}) > 1:
        maps.append(_map(matrices, "rank", "rank", 0))
    return maps


def _map(matrices: list[Mapping[str, Any]], field: str, title: str, digits: int) -> Table:
    values = {
        (layer_of(matrix["module"]), linear_of(matrix["module"])): float(matrix[field]) for matrix in matrices
    }
    return grid(values, title, digits)


def _targets(lora: Lora) -> list[str]:
    """The kinds of matrices that it adapts, in the order of the forward pass."""
    found = set(map(linear_of, lora.pairs))
    return [*(name for name in LINEARS if name in found), *sorted(found.difference(LINEARS))]


def _matrices(lora: Lora) -> list[dict[str, Any]]:
    return [
        {
            "module": module,
            "shape": [pair.b.shape[0], pair.a.shape[1]],
            "rank": pair.rank,
            "scaling": pair.scaling,
            "norm": pair.norm,
        }
        for module, pair in sorted(lora.pairs.items(), key=lambda item: (layer_of(item[0]), item[0]))
    ]
