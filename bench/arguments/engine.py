"""How many tokens a second does a mixed batch get, here and elsewhere?

16 requests of 64 prompt and 64 new tokens, greedy, whatever they say, under no, one or eight experts, by our engine,
transformers, our experts attached to its model, PEFT's mixed batch of LoRA adapters, and by the paper's procedure,
which rebuilds the weights for each expert; then one request alone. A reference model in float32 checks every answer
first.
"""

import argparse

from zweave.options.arguments import positive_whole

from ..harness.options import add_model, add_pace, names_of

PROVIDERS = (
    "base",
    "one",
    "many",
    "leading",
    "after_prompt",
    "transformers",
    "attached_base",
    "attached",
    "peft",
    "recompose",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    for name, value in (("requests", 16), ("prompt", 64), ("new", 64), ("experts", 8)):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help="(%(default)s)")
    parser.add_argument(
        "--providers", type=names_of(PROVIDERS), help=f"of {', '.join(PROVIDERS)} (all of them)"
    )
    parser.add_argument("--no-single", action="store_true", help="leave out the request alone")
    add_pace(parser, rounds=3)
