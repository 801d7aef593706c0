"""Do experts look alike where their descriptions do?

Over the LoRAs that `zweave bench lora-adapters` made on generated tasks: the cosine of two descriptions against that of
the LoRAs' products, and of sigma (z - 1) of the experts that come closest to them; with --experts over the experts of a
folder of `zweave bench hidden-tasks`. p is Mantel's: tasks are permuted.
"""

import argparse
from pathlib import Path

from zweave.options.arguments import positive_whole

from ..harness.options import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--generated", type=positive_whole, default=128, metavar="N", help="of the LoRAs (%(default)s)"
    )
    parser.add_argument(
        "--experts", type=Path, metavar="DIR", help="experts of hidden tasks, instead of the LoRAs"
    )
