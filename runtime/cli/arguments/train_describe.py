"""`zweave train-describe`: trains a generator that turns descriptions of tasks into experts.

It learns from hidden tasks (docs/describe.md), each step from other descriptions, and holds out wordings, combinations
and attributes. A training that was interrupted, or whose minutes ended, goes on when the same command is given again.
"""

import argparse
from pathlib import Path

from ...names import DEFAULT_MODEL
from ...options.arguments import number_from_zero, positive_number, positive_whole, whole
from ...options.file_options import add_overwrite_option
from ...options.task_options import add_data_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the generator to write")
    add_overwrite_option(parser)
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="pulled name, directory or GGUF file (%(default)s)"
    )
    add_data_option(parser)
    parser.add_argument(
        "--encoder",
        choices=("minilm", "base"),
        default="minilm",
        help="of descriptions: MiniLM, or the base model's own states (%(default)s)",
    )
    parser.add_argument(
        "--attributes",
        type=lambda text: tuple(text.split(",")),
        metavar="NAME,...",
        help="of the hidden tasks to learn, such as positive,asks-person (all that need no optional package)",
    )
    parser.add_argument(
        "--words",
        type=lambda text: tuple(tuple(pair.split("-")) for pair in text.split(",")),
        metavar="WORD-WORD,...",
        help="pairs of label words to learn, in both orders, such as yes-no,red-blue (all)",
    )
    parser.add_argument("--first-layer", type=whole, default=0, help="that experts change (%(default)s)")
    parser.add_argument(
        "--upper-layer",
        type=whole,
        default=0,
        metavar="LAYER",
        help="learn experts in two parts: below this layer of what is asked, from it on of the words to say (one part)",
    )
    parser.add_argument(
        "--reading-steps",
        type=positive_whole,
        default=1500,
        help="in which it learns before to say what descriptions ask for (%(default)s)",
    )
    parser.add_argument("--listed", action="store_true", help="list all label words in the prompts")
    parser.add_argument(
        "--one-order", action="store_true", help="have the first word of a pair always mean yes"
    )
    parser.add_argument(
        "--static",
        action="store_true",
        help="as a control, have no description told, and write the one expert that is learnt for all tasks",
    )
    parser.add_argument(
        "--texts", type=positive_whole, default=400, help="of a source to train on (%(default)s)"
    )
    parser.add_argument("--steps", type=positive_whole, default=1500, help="(%(default)s)")
    parser.add_argument("--descriptions", type=positive_whole, default=16, help="a step (%(default)s)")
    parser.add_argument("--rows", type=positive_whole, default=2, help="samples of each (%(default)s)")
    parser.add_argument(
        "--lr", type=positive_number, default=2e-3, help="largest learning rate (%(default)s)"
    )
    parser.add_argument(
        "--opening",
        type=whole,
        default=400,
        metavar="STEPS",
        help="at the beginning, in which two parts have half of the descriptions under the same words (%(default)s)",
    )
    parser.add_argument(
        "--policy",
        type=number_from_zero,
        default=0.0,
        metavar="SHARE",
        help="of the loss that is the missed reward 1 - p(answer), the exact policy gradient, in place of the "
        "cross-entropy (%(default)s)",
    )
    parser.add_argument(
        "--kl",
        type=number_from_zero,
        default=0.0,
        metavar="WEIGHT",
        help="of the KL to the base model on everyday prompts (%(default)s)",
    )
    parser.add_argument(
        "--warm-start",
        type=Path,
        metavar="DIR",
        help="of experts of single tasks to begin near (zweave bench hidden-tasks)",
    )
    parser.add_argument("--seed", type=whole, default=0, help="(%(default)s)")
    parser.add_argument(
        "--split", type=whole, default=0, help="seed of which tasks are held out (%(default)s)"
    )
    parser.add_argument("--minutes", type=positive_number, help="stop after so long, to go on later")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="(as zweave train)")
    parser.set_defaults(run=Deferred("train_describe", ("--warm-start",), ("--out",)))
