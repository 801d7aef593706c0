"""`zweave decompose`: factors a model's adapted matrices, once, into the cache."""

import argparse

from ...options.arguments import positive_number, positive_whole
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="pulled name, directory or GGUF file")
    parser.add_argument("--force", action="store_true", help="do it again even if it was done")
    parser.add_argument(
        "--memory",
        type=positive_number,
        metavar="GiB",
        help="for the matrices under way (2, or what the largest needs)",
    )
    parser.add_argument(
        "--workers",
        type=positive_whole,
        metavar="N",
        help="matrices at once on the CPU (as many as there are cores)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=Deferred("decompose"))
