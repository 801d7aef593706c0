"""`zweave expert project`: writes the expert that comes closest to a LoRA."""

import argparse
import json
import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from ..adapters.peft_directory import read_peft
from ..checkpoint.checkpoint import resolve_model
from ..decomposition.decomposition import decompose
from ..errors import ZweaveError
from ..experts.projection import Kept, by_kind, project, total
from ..io.progress import progress_bar


def run(args: argparse.Namespace) -> int:
    lora, checkpoint = read_peft(args.directory), resolve_model(args.model)
    try:
        # Asked before a model is decomposed, which takes minutes.
        lora.check(checkpoint.adapted_shapes())
        decomposition = decompose(checkpoint)
        with progress_bar() as report:
            expert, kept = project(lora, decomposition, report)
    except ZweaveError as error:
        raise ZweaveError(f"{args.directory}: {error}") from None
    expert.save(args.output, half=args.half)
    if args.json:
        facts = {
            "output": str(args.output),
            "digest": expert.digest,
            "kept": total(kept).share,
            "matrices": [_figures(entry) for entry in kept],
        }
        print(json.dumps(facts))
        return 0
    Console(highlight=False).print(_table([*(kept if args.all else by_kind(kept)), total(kept)]))
    print(args.output)
    return 0


def _figures(entry: Kept) -> dict[str, object]:
    return {
        "module": entry.module,
        "norm": math.sqrt(entry.squared),
        "kept": entry.share,
        "chance": entry.chance,
    }


def _table(found: Iterable[Kept]) -> Table:
    table = Table(box=None)
    table.add_column("matrix", no_wrap=True)
    for heading in ("||B A||", "kept of its square", "by chance"):
        table.add_column(heading, justify="right")
    for entry in found:
        table.add_row(
            entry.module, f"{math.sqrt(entry.squared):.4f}", f"{entry.share:.4f}", f"{entry.chance:.4f}"
        )
    return table
