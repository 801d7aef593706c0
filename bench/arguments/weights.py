"""What do the forms in which weights can stay cost: divergence, perplexity and accuracy?

Each form (`--forms`, the engine's `weights`) is served in each dtype, beside the plain weights in float32, the
reference. On texts: the mean KL of the next token to the reference's, of the base and under each expert, the share of
tokens that stay the likeliest ones, and the base's perplexity. On test samples: the share of right answers to each
expert's task.
"""

import argparse
from pathlib import Path

from zweave.names import DEFAULT_MODEL, DTYPES, WEIGHTS
from zweave.options.arguments import positive_whole, whole
from zweave.options.task_options import add_data_option

from ..harness.options import names_of

EXPERTS = ("sst2", "trec", "addition")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="pulled name or directory (%(default)s)")
    parser.add_argument(
        "--forms",
        type=names_of(WEIGHTS),
        default=",".join(WEIGHTS),
        help=f"of {', '.join(WEIGHTS)} (all of them)",
    )
    parser.add_argument(
        "--dtypes", type=names_of(DTYPES), default="bfloat16", help=f"of {', '.join(DTYPES)} (%(default)s)"
    )
    parser.add_argument(
        "--experts",
        type=names_of(EXPERTS),
        default=",".join(EXPERTS),
        help=f"experts that come with zweave, and the tasks of these names, of {', '.join(EXPERTS)} (all of them)",
    )
    add_data_option(parser)
    parser.add_argument(
        "--text",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="to compare on; repeatable (what `zweave quantize` measures with of its own text)",
    )
    parser.add_argument(
        "--tokens",
        type=whole,
        default=2048,
        metavar="N",
        help="of each text at most, 0: compare none (%(default)s)",
    )
    parser.add_argument(
        "--piece", type=positive_whole, default=256, metavar="N", help="tokens read at once (%(default)s)"
    )
    parser.add_argument(
        "--samples", type=whole, default=500, metavar="N", help="of each task, 0: no tasks (%(default)s)"
    )
