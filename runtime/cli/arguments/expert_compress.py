"""`zweave expert compress`: stores many LoRAs as coefficients over a common basis, served at the cost of one."""

import argparse
from pathlib import Path
from typing import get_args

from ...names import DEFAULT_MODEL, CompressionVariant
from ...options.arguments import positive_whole, whole
from ...options.file_options import add_overwrite_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters",
        nargs="+",
        metavar="DIR",
        help="a LoRA as PEFT saves it, called as its directory is; NAME=DIR calls it otherwise",
    )
    parser.add_argument(
        "--rank", type=positive_whole, required=True, metavar="K", help="components of a basis"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the file of adapters to write"
    )
    add_overwrite_option(parser)
    parser.add_argument(
        "--variant",
        choices=get_args(CompressionVariant),
        default="diagonal",
        help="what each adapter has of its own: K singular values, or a K x K matrix, closer and "
        "served as a plain LoRA (%(default)s)",
    )
    parser.add_argument(
        "--clusters",
        type=positive_whole,
        default=1,
        metavar="C",
        help="bases, each for the adapters that it fits best (%(default)s)",
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the fit's start (%(default)s)")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="that the adapters are for: pulled name, directory or GGUF file (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the errors of all matrices, as JSON")
    parser.set_defaults(run=Deferred("expert_compress", outputs=("--output",)))
