"""`zweave expert project`: writes the expert that comes closest to a LoRA."""

import argparse
from pathlib import Path

from ...names import DEFAULT_MODEL
from ...options.file_options import add_overwrite_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="a LoRA as PEFT saves it")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the expert file to write"
    )
    add_overwrite_option(parser)
    parser.add_argument("--half", action="store_true", help="store z - 1 in float16, at half the size")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="that it is for: pulled name, directory or GGUF file (%(default)s)",
    )
    parser.add_argument("--all", action="store_true", help="report every matrix, not one line a kind")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=Deferred("expert_project", outputs=("--output",)))
