"""What does it cost not to know a prompt's task?

First requests alone: the first pass, which finds the expert, beside the second, for each strategy and each kind of
expert, and the reference's: classify by writing, rebuild the weights, read the prompt again, answer. Then
a stream of prompts of three tasks, arriving as others end, against the same stream with the right experts named.
"""

import argparse

from zweave.options.arguments import positive_whole
from zweave.options.task_options import add_data_option

from ..harness.options import add_model, add_pace, names_of, numbers

WORKLOADS = ("alone", "stream")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--workloads", type=names_of(WORKLOADS), default=",".join(WORKLOADS), help="(%(default)s)"
    )
    parser.add_argument(
        "--reference-dtype",
        choices=["bfloat16", "float32"],
        help="the faster one where the processor does not multiply bfloat16 (that of --dtype)",
    )
    parser.add_argument(
        "--prompts",
        type=numbers,
        default="64,512,2048",
        metavar="N,...",
        help="tokens, of requests alone (%(default)s)",
    )
    for name, value, what in (
        ("new", 64, "tokens of their answers"),
        ("guess", 4, "tokens by which the reference classifies"),
        ("layer", 2, "that the hidden strategy reads"),
        ("samples", 30, "of each task in the stream"),
        ("in-flight", 16, "requests of the stream at once"),
    ):
        parser.add_argument(
            f"--{name}", type=positive_whole, default=value, metavar="N", help=f"{what} (%(default)s)"
        )
    parser.add_argument(
        "--stream-new",
        type=positive_whole,
        metavar="N",
        help="tokens of the stream's answers (the tasks' own)",
    )
    add_data_option(parser)
    add_pace(parser, rounds=5, seconds=25)
