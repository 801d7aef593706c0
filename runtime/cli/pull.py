"""`zweave pull`: gets a model into the cache, after which no network is needed."""

import argparse

from ..checkpoint.pull import MODELS, pull
from ..io.progress import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=f"one of: {', '.join(MODELS)}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with progress_bar() as report:
        directory = pull(args.model, report)
    print(directory)
    return 0
