"""`zweave pull`: gets a model into the cache, after which no network is needed."""

import argparse

from ..checkpoint.pull import pull
from ..io.progress import progress_bar


def run(args: argparse.Namespace) -> int:
    with progress_bar() as report:
        directory = pull(args.model, report)
    print(directory)
    return 0
