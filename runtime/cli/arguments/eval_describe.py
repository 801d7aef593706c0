"""`zweave eval --describe FILE`: whether a generator's experts listen to their descriptions."""

import argparse
from pathlib import Path

from ...options.arguments import positive_whole
from ...options.file_options import generator


def add_describe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--describe",
        type=generator,
        metavar="FILE",
        help="instead: a generator on held-out descriptions of hidden tasks, beside controls; the TASKs are then the "
        "levels L1, L2 and L3 (docs/describe.md)",
    )
    parser.add_argument(
        "--level-tasks",
        type=positive_whole,
        default=20,
        metavar="N",
        help="with --describe: of a level (%(default)s)",
    )
    parser.add_argument(
        "--static",
        type=Path,
        metavar="FILE",
        help="with --describe: beside it the expert of zweave train-describe --static",
    )
    parser.add_argument(
        "--hidden-experts",
        type=Path,
        metavar="DIR",
        help="with --describe: beside it the experts of zweave bench hidden-tasks, as oracles and mixed by how "
        "alike their descriptions are",
    )
