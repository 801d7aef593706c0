"""`zweave expert transfer`: transfers an expert to another model of the same shapes."""

import argparse
import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from ..checkpoint.checkpoint import resolve_model
from ..decomposition.decomposition import decompose
from ..experts.expert import Expert
from ..experts.transfer import Overlap, by_kind, overlaps, shuffled, transfer


def run(args: argparse.Namespace) -> int:
    source, target = resolve_model(args.from_model), resolve_model(args.to_model)
    moved = transfer(Expert.load(args.file), source, target)
    if args.shuffle is not None:
        moved = shuffled(moved, args.shuffle)
    found = list(overlaps(decompose(source), decompose(target)))
    moved.save(args.output, half=args.half)
    if args.json:
        print(json.dumps({"output": str(args.output), "matrices": [asdict(entry) for entry in found]}))
        return 0
    Console(highlight=False).print(_table(found if args.all else by_kind(found)))
    print(args.output)
    return 0


def _table(found: list[Overlap]) -> Table:
    table = Table(box=None, title="How alike the leading R/8 components are", title_justify="left")
    table.add_column("matrix", no_wrap=True)
    for heading in ("shared span", "by chance", "same component", "cosine of spectra"):
        table.add_column(heading, justify="right")
    for entry in found:
        figures = (entry.subspace, entry.chance, entry.aligned, entry.spectrum)
        table.add_row(entry.module, *(f"{figure:.3f}" for figure in figures))
    return table
