"""How long does it take to find a prompt among many whose keys and values are cached?

Prompts of random tokens, whole in the tree. A lookup starts from the prompt's token ids, as for a new request. No
model is involved: the tree knows block numbers.
"""

import argparse

from zweave.options.arguments import positive_whole, whole

from ..harness.options import add_pace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cached", type=positive_whole, default=10_000, help="prompts (%(default)s)")
    parser.add_argument("--tokens", type=positive_whole, default=2048, help="of a prompt (%(default)s)")
    parser.add_argument(
        "--shared", type=whole, default=1024, help="tokens that all prompts begin with (%(default)s)"
    )
    parser.add_argument("--block-size", type=positive_whole, default=16, help="(%(default)s)")
    add_pace(parser, rounds=50)
