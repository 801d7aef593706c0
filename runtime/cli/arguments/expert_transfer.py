"""`zweave expert transfer`: transfers an expert to another model of the same shapes."""

import argparse
from pathlib import Path

from ...options.arguments import whole
from ...options.file_options import add_overwrite_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the expert file, or the name of one that comes with zweave")
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
    parser.set_defaults(run=Deferred("expert_transfer", outputs=("output",)))
