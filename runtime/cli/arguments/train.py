"""`zweave train`: teaches experts tasks by reinforcement, or by their answers.

`zweave train trec` does it with the recipe that is known to work; every option overrides a part of it, and all of
them are recorded in the expert file. `zweave train sst2 trec --seed 0,1` trains four experts in one run, each as if
alone. A training that was interrupted goes on when the same command is given again.
"""

import argparse
from pathlib import Path
from typing import get_args

from ...names import DEFAULT_MODEL, AdapterKind, Objective, Scope
from ...options.arguments import positive_number, positive_whole, several, whole
from ...options.file_options import add_overwrite_option
from ...options.task_options import TASK_HELP, add_data_option
from ..parser import Deferred


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task", metavar="TASK", nargs="+", help=f"{TASK_HELP}; several are trained together, an expert each"
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="pulled name, directory or GGUF file (%(default)s)"
    )
    add_data_option(parser)
    parser.add_argument("--out", type=Path, default=Path("experts"), metavar="DIR", help="(%(default)s)")
    parser.add_argument(
        "--name", metavar="NAME[,NAME]", help="of the files in it (the task's), one for each training"
    )
    add_overwrite_option(parser)
    _add_recipe(parser)
    parser.add_argument(
        "--held-out",
        type=whole,
        default=500,
        metavar="N",
        help="test samples of the final figure (%(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="(bfloat16; float32 on a processor that cannot multiply it)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--threads", type=positive_whole, help="CPU threads")
    parser.add_argument(
        "--json", action="store_true", help="print the record of each expert as a line of JSON"
    )
    parser.set_defaults(run=Deferred("train"))


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "recipe",
        "by default what suits the task; each of several seeds, supports or ranks is a training of its own",
    )
    group.add_argument(
        "--objective", choices=get_args(Objective), help="(reinforce; sft where answers are texts to be met)"
    )
    group.add_argument(
        "--support",
        type=several(str),
        metavar="SUPPORT[,SUPPORT]",
        help="full, leading:K, leading:R/8, sparse:K or sparse:R/8",
    )
    group.add_argument("--scope", choices=get_args(Scope), help="which tokens the expert acts on")
    group.add_argument("--first-layer", type=whole, metavar="L", help="adapt nothing below this layer")
    group.add_argument("--steps", type=positive_whole)
    group.add_argument("--batch", type=positive_whole, help="prompts a step")
    group.add_argument("--draws", type=positive_whole, help="actions or answers a prompt")
    group.add_argument("--lr", type=positive_number, help="largest learning rate")
    group.add_argument("--warmup", type=whole, help="steps of rising learning rate")
    group.add_argument("--decay", type=float, help="share of the steps of falling learning rate")
    group.add_argument("--clip", type=positive_number, help="largest norm of a gradient")
    group.add_argument("--entropy", type=float, help="weight of the bonus on the labels' entropy")
    group.add_argument(
        "--mass", type=float, help="weight of the bonus on the labels' share of the vocabulary"
    )
    group.add_argument("--balance", type=float, help="weight of the bonus on each label's share in the batch")
    group.add_argument("--kl", type=float, help="weight of the KL divergence to the base (plain)")
    group.add_argument("--validate-every", type=positive_whole, metavar="N", help="steps between validations")
    group.add_argument("--validation", type=positive_whole, metavar="N", help="samples of a validation")
    group.add_argument("--patience", type=positive_whole, help="validations without gain before it stops")
    group.add_argument("--adapter", choices=get_args(AdapterKind), help="lora: the baseline, by PEFT")
    group.add_argument("--rank", type=several(positive_whole), metavar="N[,N]", help="of lora")
    group.add_argument("--seed", type=several(whole), metavar="N[,N]")
