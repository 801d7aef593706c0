"""What does it cost to serve many LoRA adapters at once, here and elsewhere?

16 requests of 64 prompt and 64 new tokens, greedy, whatever they say: by our engine under no adapter, under 1 to 128
adapters, and under as many compressed ones, by vLLM without and with LoRA, by transformers, by PEFT's mixed batch, and
by llama.cpp, all but the compressed with the same random adapters of all matrices. Each runs in a process of its own,
and they take turns. Then one request alone beside 1 and beside 32 resident adapters, and the steps of a batch while
adapters are loaded. A reference model in float32 checks every answer first.
"""

import argparse

from zweave.options.arguments import positive_whole

from ..harness.options import add_model, add_pace, names_of, numbers

PARTS = ("zweave", "compressed", "vllm", "transformers", "peft", "llama.cpp", "alone", "loading")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    for name, value in (("requests", 16), ("prompt", 64), ("new", 64)):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help="(%(default)s)")
    parser.add_argument("--ranks", type=numbers, default="16,64", metavar="R,...", help="(%(default)s)")
    parser.add_argument(
        "--adapters", type=numbers, default="1,8,32,128", metavar="N,...", help="of our engine (%(default)s)"
    )
    parser.add_argument(
        "--basis",
        type=positive_whole,
        default=128,
        metavar="K",
        help="components that compressed adapters share (%(default)s)",
    )
    parser.add_argument(
        "--peer-adapters", type=numbers, default="8", metavar="N,...", help="of the others (%(default)s)"
    )
    parser.add_argument(
        "--parts", type=names_of(PARTS), default=",".join(PARTS), help=f"of {', '.join(PARTS)} (all of them)"
    )
    add_pace(parser, rounds=5)
