"""Can a description be read: what it asks for, and which word means yes?

A reader, as generators have one, is trained on wordings of the tasks that generators are trained on, with a linear map
for the attribute and one for the word that means yes; then it reads new wordings, and held-out ones.
"""

import argparse

from zweave.options.arguments import positive_whole, whole

from ..harness.options import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--encoders", nargs="+", choices=("minilm", "base"), default=["minilm"], help="(minilm)"
    )
    parser.add_argument("--steps", type=positive_whole, default=1500, help="(%(default)s)")
    parser.add_argument(
        "--descriptions", type=positive_whole, default=6000, help="to learn from (%(default)s)"
    )
    parser.add_argument(
        "--held-out", type=positive_whole, default=600, help="to read afterwards (%(default)s)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="(%(default)s)")
