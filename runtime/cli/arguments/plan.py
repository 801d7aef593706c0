"""`zweave plan`: which weights a model keeps within a memory and error budget, and what each mode costs."""

import argparse

from ...names import DEFAULT_MODEL, DTYPES, LORA_COMPONENTS
from ...options.arguments import positive_number, positive_whole, whole
from ...options.engine_options import add_weights_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="pulled name, directory or GGUF file (%(default)s)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="(%(default)s)")
    add_weights_option(parser)
    parser.add_argument(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="cuda: the plan of a GPU, which need not be there (%(default)s)",
    )
    parser.add_argument(
        "--tokens", type=positive_whole, default=16, metavar="T", help="of a batch (%(default)s)"
    )
    parser.add_argument(
        "--context",
        type=positive_whole,
        default=512,
        metavar="C",
        help="tokens of each sequence of a step on a GPU, and of a prompt (%(default)s)",
    )
    parser.add_argument(
        "--experts",
        type=whole,
        default=8,
        metavar="E",
        help="of a batch, without limits; 0: the base (%(default)s)",
    )
    parser.add_argument(
        "--max-memory", type=positive_number, metavar="MiB", help="for the weights of the adapted matrices"
    )
    parser.add_argument(
        "--lora-components",
        type=whole,
        metavar="N",
        help=f"of LoRAs, resident besides the budget ({LORA_COMPONENTS}; on a GPU none)",
    )
    parser.add_argument(
        "--max-error",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of a matrix's spectral norm that an expert may lose (%(default)s)",
    )
    parser.add_argument(
        "--certify",
        action="append",
        default=[],
        metavar="EXPERT",
        help="expert file or bundled expert whose loss by the kept components is shown; repeatable",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="measure every mode of every shape; for a GPU predict every mode of a step",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=Deferred("plan"))
