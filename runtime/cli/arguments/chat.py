"""`zweave chat`: a conversation in the terminal; the expert may change from turn to turn."""

import argparse

from ...options.arguments import positive_whole, whole
from ...options.engine_options import (
    EXPERT_HELP,
    RAW_HELP,
    add_dispatcher_option,
    add_engine_options,
    add_escape_option,
)
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--expert", metavar="NAME|NAME=WEIGHT,...|auto", help=EXPERT_HELP)
    parser.add_argument("--raw", action="store_true", help=RAW_HELP)
    add_escape_option(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--max-tokens", type=positive_whole, default=512, help="of an answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="(%(default)s, greedy)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=whole)
    add_dispatcher_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=Deferred("chat", ("--dispatcher",)))
