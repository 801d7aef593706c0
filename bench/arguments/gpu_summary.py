"""What did `bench gpu` measure, beside what was predicted?

Every row that has a prediction, and what was right, wrong or failed. The figure of --plot is the roofline of all parts
under the roofs that were measured.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, required=True, metavar="DIR", help="where `bench gpu --out` wrote"
    )
