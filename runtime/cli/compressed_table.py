"""What a file of compressed LoRAs holds, as `zweave expert compress` and `expert show` print it."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..adapters.compression.compressed import CompressedLoras
from ..checkpoint.module_name import layer_of, linear_of

_FULL = (
    "the full variant: each adapter is served as a plain LoRA of its own rank, so that only the file is smaller; "
    "adapters of the diagonal variant share what is resident"
)


def print_compressed(compressed: CompressedLoras, file: Path, as_json: bool) -> None:
    """A line an adapter with its largest error of a matrix, or everything as JSON."""
    facts = _facts(compressed, file)
    if as_json:
        print(json.dumps(facts))
        return
    Console(highlight=False).print(_table(facts["adapters"]))
    worst = max(facts["matrices"], key=lambda module: facts["matrices"][module])
    print(f"relative error of all: {facts['error']:.4f}; largest in {worst}: {facts['matrices'][worst]:.4f}")
    bases = "a basis" if facts["clusters"] == 1 else f"{facts['clusters']} bases"
    print(
        f"{file}: {len(compressed.adapters)} adapters over {bases} of {compressed.rank} components, "
        f"{compressed.variant}, {facts['bytes'] / (1 << 20):.1f} MiB"
    )
    print(f"base {facts['base']}")
    if compressed.variant == "full":
        print(_FULL)


def _facts(compressed: CompressedLoras, file: Path) -> dict[str, Any]:
    adapters = []
    of_matrix: dict[str, list[float]] = {}
    for index, adapter in enumerate(compressed.adapters):
        errors = compressed.errors(index)
        for module, error in errors.items():
            of_matrix.setdefault(module, []).append(error)
        adapters.append(
            {
                "name": adapter.name,
                "error": adapter.error,
                "cluster": adapter.cluster,
                "rank": adapter.rank,
                "scope": adapter.scope,
                "invocation_tokens": list(adapter.invocation_tokens),
                "description": adapter.description,
                "digest": adapter.digest,
                "errors": errors,
            }
        )
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "base": compressed.base_digest or "unknown",
        "variant": compressed.variant,
        "rank": compressed.rank,
        "clusters": len(compressed.clusters),
        "seed": compressed.seed,
        "error": _mean_square([adapter.error for adapter in compressed.adapters]),
        "matrices": {module: _mean_square(errors) for module, errors in of_matrix.items()},
        "adapters": adapters,
    }


def _mean_square(errors: list[float]) -> float:
    """The root of the mean square."""
    return math.sqrt(sum(error * error for error in errors) / len(errors))


def _table(adapters: list[dict[str, Any]]) -> Table:
    """Scope and cluster are told where adapters differ in them."""
    told = [field for field in ("scope", "cluster") if len({adapter[field] for adapter in adapters}) > 1]
    table = Table(box=None)
    table.add_column("adapter", overflow="fold")
    for heading in (*told, "rank", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("worst matrix")
    table.add_column("its error", justify="right", no_wrap=True)
    for adapter in adapters:
        errors = adapter["errors"]
        worst = max(errors, key=errors.get, default="")
        where = f"{layer_of(worst)} {linear_of(worst)}" if worst else "-"
        row = (adapter["name"], *(str(adapter[field]) for field in (*told, "rank")))
        table.add_row(*row, f"{adapter['error']:.4f}", where, f"{errors.get(worst, 0):.4f}")
    return table
