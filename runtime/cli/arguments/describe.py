"""`zweave describe`: makes an expert of a sentence that says what to do with a text.

`zweave describe "Say yes for a good review and no for a bad one." -o good.safetensors`; the generator is the one that
comes with zweave for its default model, or one of `zweave train-describe` (docs/describe.md).
"""

import argparse
from pathlib import Path

from ...names import DEFAULT_MODEL
from ...options.file_options import add_generator_option, add_overwrite_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="DESCRIPTION", help="what to do with a text")
    add_generator_option(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the expert to write")
    add_overwrite_option(parser)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="pulled name or directory (%(default)s)")
    parser.add_argument(
        "--effect",
        action="store_true",
        help="tell the KL to the base and the likeliest words of answers to everyday prompts, too",
    )
    parser.add_argument(
        "--static",
        type=Path,
        metavar="FILE",
        help="tell how far it is from the expert of train-describe --static",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=Deferred("describe", ("--static",), ("--out",)))
