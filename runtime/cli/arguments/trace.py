"""`zweave trace`: the timeline of a request stream, as a Chrome trace and a picture.

Requests arrive one after the other; passes, experts, reuse and the cache's blocks are written down step by step. Open
the trace in ui.perfetto.dev. Without --input the demo's prompts come twice, the second time from the cache.
"""

import argparse
from pathlib import Path

from ...options.arguments import number_from_zero
from ...options.engine_options import add_dispatcher_option, add_engine_options
from ...options.file_options import add_overwrite_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", metavar="FILE", help="JSON lines with the fields of a Request")
    parser.add_argument("--output", type=Path, default=Path("trace.json"), help="Chrome trace (%(default)s)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="a picture of it, too; needs matplotlib")
    parser.add_argument(
        "--interval",
        type=number_from_zero,
        default=0.02,
        metavar="SECONDS",
        help="between two arrivals; 0: all at once (%(default)s)",
    )
    add_overwrite_option(parser)
    add_dispatcher_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=Deferred("trace", ("--input", "--dispatcher"), ("--output", "--png")))
