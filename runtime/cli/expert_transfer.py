"""`zweave expert transfer`: transfers an expert to another model of the same shapes."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..checkpoint.checkpoint import resolve_model
from ..decomposition.decomposition import decompose
from ..experts.expert import Expert
from ..experts.transfer import Overlap, by_kind, overlaps, shuffled, transfer
from ..options.arguments import whole
from ..options.output_options import add_overwrite_option, check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the expert")
    parser.add_argument("output", type=Path, help="the expert file to write")
    add_overwrite_option(parser)
    for name, what in (("--from", "it was trained for"), ("--to", "it is to serve")):
        parser.add_argument(
            name, dest=name[2:] + "_model", required=True, metavar="MODEL", help=f"the model that {what}"
        )
    parser.add_argument(
        "--shuffle", type=whole, metavar="SEED", help="the control: shuffle z within each matrix"
    )
    parser.add_argument("--half", action="store_true", help="store z - 1 in float16, at half the size")
    parser.add_argument("--all", action="store_true", help="report every matrix, not one line a kind")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_output(args, "output", args.output)
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
