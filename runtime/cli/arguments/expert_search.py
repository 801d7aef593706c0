"""`zweave expert search`: finds the mixture of experts that answers a task's few samples best."""

import argparse
from pathlib import Path

from ...options.arguments import positive_whole, whole
from ...options.engine_options import EXPERT_HELP, add_engine_options
from ...options.file_options import add_overwrite_option
from ...options.task_options import TASK_HELP, add_data_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    parser.add_argument("--experts", nargs="+", required=True, metavar="NAME", help=EXPERT_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the expert file to write")
    add_overwrite_option(parser)
    parser.add_argument("--half", action="store_true", help="store z - 1 in float16, at half the size")
    parser.add_argument("--shots", type=positive_whole, default=16, metavar="N", help="samples (%(default)s)")
    parser.add_argument("--per-layer", action="store_true", help="a weight for each expert and layer")
    parser.add_argument("--free", action="store_true", help="weights need not add up to 1")
    parser.add_argument("--population", type=positive_whole, default=32, metavar="N", help="(%(default)s)")
    parser.add_argument("--generations", type=positive_whole, default=8, metavar="N", help="(%(default)s)")
    parser.add_argument("--seed", type=whole, default=0, help="of the shots and the search (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    add_data_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=Deferred("expert_search", outputs=("--out",)))
