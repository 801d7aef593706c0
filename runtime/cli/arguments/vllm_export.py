"""`zweave vllm-export`: an expert or mixture as the adapter directory that vLLM loads (docs/vllm.md)."""

import argparse
from pathlib import Path

from ...options.engine_options import EXPERT_HELP
from ...options.file_options import add_overwrite_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "expert", metavar="EXPERT", help=f"{EXPERT_HELP}, or a mixture NAME=WEIGHT,NAME=WEIGHT"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="the directory to write (named after the expert)"
    )
    add_overwrite_option(parser)
    parser.set_defaults(run=Deferred("vllm_export"))
