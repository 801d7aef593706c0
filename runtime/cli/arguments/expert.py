"""`zweave expert`: shows, makes, mixes, compares, imports, transfers and searches expert files."""

import argparse
from pathlib import Path
from typing import TypeAlias, get_args

from ...names import Scope
from ...options.arguments import positive_number, positive_whole, whole
from ...options.file_options import add_overwrite_option
from ..parser import Deferred, add_command
from . import expert_classifier, expert_compress, expert_project, expert_search, expert_transfer

_EXPERT_HELP = "an expert file, or the name of one that comes with zweave"
_SHOWN_HELP = f"{_EXPERT_HELP}, or a LoRA's directory"

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    _add_show(commands)
    _add_new(commands)
    _add_mix(commands)
    _add_diff(commands)
    add_command(commands, "search", "find the mixture that answers a task's few samples best", expert_search)
    add_command(
        commands, "classifier", "train a light classifier of prompts on an early layer", expert_classifier
    )
    _add_import(commands)
    add_command(commands, "transfer", "carry an expert over to a model of equal shapes", expert_transfer)
    add_command(commands, "compress", "put many LoRAs over a common basis", expert_compress)
    add_command(commands, "project", "make the expert that comes closest to a LoRA", expert_project)


def _add_show(commands: Commands) -> None:
    show = commands.add_parser(
        "show", help="what an expert or a LoRA says, and a heat map of what it changes"
    )
    show.add_argument("file", type=Path, help=_SHOWN_HELP)
    show.add_argument("--png", type=Path, metavar="FILE", help="draw the heat map into a file instead")
    add_overwrite_option(show)
    show.add_argument("--json", action="store_true", help="print it as JSON")
    show.set_defaults(run=Deferred("expert", outputs=("--png",)))


def _add_new(commands: Commands) -> None:
    new = commands.add_parser("new", help="make an expert that changes nothing, or a random one")
    _add_output(new)
    new.add_argument("--random", type=positive_number, metavar="STD", help="draw z from a normal around 1")
    new.add_argument("--seed", type=whole, default=0, help="of --random (%(default)s)")
    new.add_argument("--scope", choices=get_args(Scope), default="always", help="(%(default)s)")
    new.add_argument("--first-layer", type=whole, default=0, metavar="N", help="adapt from this layer on")
    new.add_argument("--renormalise", action="store_true", help="keep the sum of the singular values")
    new.add_argument("--description", default="", metavar="TEXT")
    _add_model(new)
    new.set_defaults(run=Deferred("expert", outputs=("output",)))


def _add_mix(commands: Commands) -> None:
    mix = commands.add_parser("mix", help="write a mixture of experts as one expert file")
    _add_output(mix)
    mix.add_argument(
        "parts",
        nargs="+",
        metavar="EXPERT=WEIGHT",
        help="a file or a name; WEIGHT is a number, or one a layer: 1,0.5,...",
    )
    mix.add_argument(
        "--layers", type=positive_whole, metavar="N", help="of the model, if no part adapts the last"
    )
    mix.add_argument("--description", default="", metavar="TEXT")
    mix.set_defaults(run=Deferred("expert", outputs=("output",)))


def _add_diff(commands: Commands) -> None:
    diff = commands.add_parser("diff", help="how far two experts are apart")
    diff.add_argument("a", type=Path, help=_EXPERT_HELP)
    diff.add_argument("b", type=Path, help=_EXPERT_HELP)
    diff.add_argument("--all", action="store_true", help="every matrix, too")
    diff.add_argument("--json", action="store_true", help="print the figures as JSON")
    diff.set_defaults(run=Deferred("expert"))


def _add_import(commands: Commands) -> None:
    imported = commands.add_parser("import", help="convert Sakana's policy_params.pt or learnable_params.pt")
    imported.add_argument("file", type=Path)
    _add_output(imported)
    imported.add_argument(
        "--max-mult", type=positive_number, default=1.0, help="of their policy (%(default)s)"
    )
    _add_model(imported)
    imported.set_defaults(run=Deferred("expert", outputs=("output",)))


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="the expert file to write")
    add_overwrite_option(parser)
    parser.add_argument("--half", action="store_true", help="store z - 1 in float16, at half the size")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="pulled name, directory or GGUF file")
