"""`zweave demo`: one batch of different tasks, each prompt under its own expert, beside the base model.

It fetches and decomposes the default model if that was not done before.
"""

import argparse

from ...options.engine_options import add_engine_options
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.set_defaults(run=Deferred("demo"))
