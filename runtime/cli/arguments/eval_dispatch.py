"""`zweave eval --dispatch FILE`: several tasks in one stream, whose experts a dispatcher finds."""

import argparse
from pathlib import Path


def add_dispatch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dispatch",
        type=Path,
        metavar="FILE",
        help="instead: all tasks in one stream, a dispatcher against an oracle and the base (docs/dispatch.md)",
    )
    parser.add_argument(
        "--right",
        action="append",
        default=[],
        metavar="TASK=EXPERT",
        help="what the oracle has answer a task (what the dispatcher has answer the label of the task's name)",
    )
