"""`zweave pull`: gets a model into the cache, after which no network is needed."""

import argparse

from ...names import PULLED_MODELS
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=f"one of: {', '.join(PULLED_MODELS)}")
    parser.set_defaults(run=Deferred("pull"))
