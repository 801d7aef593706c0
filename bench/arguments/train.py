"""How long does a training step take, against one that rebuilds the weights?

A step is forward and backward of a batch of prompts whose last tokens are scored. The rebuilt weights are
U diag(sigma z) Vt of each matrix, made anew each step, with autograd through them; once inside our own forward pass,
so that the linears alone differ, and once inside transformers' with its padded batch. Every provider's gradient of z
is compared with that of transformers with rebuilt weights in float32.
"""

import argparse

from zweave.options.arguments import positive_whole

from ..harness.options import add_model, add_pace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--batch", type=positive_whole, default=16, help="prompts (%(default)s)")
    parser.add_argument("--prompt", type=positive_whole, default=60, help="tokens, about (%(default)s)")
    add_pace(parser, rounds=7, seconds=60.0)
