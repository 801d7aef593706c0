"""`zweave expert`: shows, makes, mixes, compares, imports, transfers and searches expert files."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias, get_args

import torch
from rich.console import Console
from rich.table import Table

from ..checkpoint.checkpoint import resolve_model
from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError
from ..experts.difference import Difference, differences
from ..experts.expert import Expert, Scope
from ..experts.heatmap import cells, save_png, text_map
from ..experts.mixture import Alpha, mix_named
from ..experts.sakana import load_sakana
from ..options.arguments import positive_number, positive_whole, whole
from . import expert_classifier, expert_search, expert_transfer
from .parser import add_command

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
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


def _add_show(commands: Commands) -> None:
    show = commands.add_parser("show", help="what an expert file says, and a heat map of its z")
    show.add_argument("file", type=Path)
    show.add_argument("--png", type=Path, metavar="FILE", help="draw the heat map into a file instead")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    show.set_defaults(run=_show)


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
    new.set_defaults(run=_new)


def _add_mix(commands: Commands) -> None:
    mix = commands.add_parser("mix", help="write a mixture of expert files as one expert")
    _add_output(mix)
    mix.add_argument(
        "parts", nargs="+", metavar="FILE=WEIGHT", help="WEIGHT is a number, or one a layer: 1,0.5,..."
    )
    mix.add_argument(
        "--layers", type=positive_whole, metavar="N", help="of the model, if no part adapts the last"
    )
    mix.add_argument("--description", default="", metavar="TEXT")
    mix.set_defaults(run=_mix)


def _add_diff(commands: Commands) -> None:
    diff = commands.add_parser("diff", help="how far two experts are apart")
    diff.add_argument("a", type=Path)
    diff.add_argument("b", type=Path)
    diff.add_argument("--json", action="store_true", help="print the figures as JSON")
    diff.set_defaults(run=_diff)


def _add_import(commands: Commands) -> None:
    imported = commands.add_parser("import", help="convert Sakana's policy_params.pt or learnable_params.pt")
    imported.add_argument("file", type=Path)
    _add_output(imported)
    imported.add_argument(
        "--max-mult", type=positive_number, default=1.0, help="of their policy (%(default)s)"
    )
    _add_model(imported)
    imported.set_defaults(run=_import)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="the expert file to write")
    parser.add_argument("--half", action="store_true", help="store z - 1 in float16, at half the size")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="pulled name, directory or GGUF file")


def _show(args: argparse.Namespace) -> int:
    expert = Expert.load(args.file)
    facts = _facts(expert)
    if args.png:
        save_png(expert, args.png)
    if args.json:
        matrices = [asdict(cell) for _, cell in sorted(cells(expert).items())]
        print(json.dumps(facts | {"matrices": matrices}))
        return 0
    for key, value in facts.items():
        print(f"{key:<12} {_printable(value if isinstance(value, str) else json.dumps(value))}")
    if args.png:
        print(f"{'heat map':<12} {args.png}")
    else:
        Console(highlight=False).print(text_map(expert))
    return 0


def _facts(expert: Expert) -> dict[str, Any]:
    facts = {
        "digest": expert.digest,
        "base": expert.base_digest or "unknown",
        "scope": expert.scope,
        "first_layer": expert.first_layer,
        "support": expert.support,
        "renormalise": expert.renormalise,
        "description": expert.description,
        "values": sum(z.numel() for z in expert.z.values()),
        "adapted": len(expert.z),
        "training": dict(expert.training),
    }
    if expert.prompt_template is not None:
        facts["prompt"] = asdict(expert.prompt_template)
    return facts


def _new(args: argparse.Namespace) -> int:
    checkpoint = resolve_model(args.model)
    if not 0 <= args.seed < 2**63:
        raise ZweaveError(f"--seed must be from 0 to 2**63 - 1, not {args.seed}")
    generator = torch.Generator().manual_seed(args.seed)
    z = {}
    for module, shape in checkpoint.config.adapted_shapes().items():
        if layer_of(module) >= args.first_layer:
            z[module] = torch.ones(min(shape))
            if args.random:
                z[module] += args.random * torch.randn(min(shape), generator=generator)
    if not z:
        raise ZweaveError(
            f"--first-layer {args.first_layer} leaves none: "
            f"the model has {checkpoint.config.num_layers} layers"
        )
    expert = Expert(
        z=z,
        base_digest=checkpoint.digest(),
        scope=args.scope,
        first_layer=args.first_layer,
        renormalise=args.renormalise,
        description=args.description,
        training={"random": args.random, "seed": args.seed} if args.random else {},
    )
    return _save(expert, args)


def _mix(args: argparse.Namespace) -> int:
    parts = [_part(text) for text in args.parts]
    experts = [Expert.load(path) for path, _ in parts]
    named = [(str(path), expert, alpha) for (path, alpha), expert in zip(parts, experts, strict=True)]
    mixed = mix_named(named, args.layers)
    record = [
        {"file": path.name, "digest": expert.digest, "weight": alpha}
        for (path, alpha), expert in zip(parts, experts, strict=True)
    ]
    return _save(replace(mixed, description=args.description, training={"mixture": record}), args)


def _part(text: str) -> tuple[Path, Alpha]:
    path, separator, weights = text.rpartition("=")
    try:
        numbers = tuple(float(weight) for weight in weights.split(","))
    except ValueError:
        numbers = ()
    if not (separator and path and numbers and all(map(math.isfinite, numbers))):
        raise ZweaveError(f"a part is FILE=WEIGHT or FILE=WEIGHT,WEIGHT,..., not {text!r}")
    return Path(path), numbers[0] if len(numbers) == 1 else numbers


def _diff(args: argparse.Namespace) -> int:
    found = differences(Expert.load(args.a), Expert.load(args.b))
    if args.json:
        print(json.dumps({"matrices": [asdict(entry) for entry in found[:-1]], "total": asdict(found[-1])}))
        return 0
    Console(highlight=False).print(_difference_table(found))
    return 0


def _difference_table(found: Sequence[Difference]) -> Table:
    table = Table(box=None)
    table.add_column("matrix", no_wrap=True)
    for heading in ("||z_a - z_b||", "largest", "cosine of z - 1"):
        table.add_column(heading, justify="right")
    for entry in found:
        cosine = "-" if entry.cosine is None else f"{entry.cosine:.4f}"
        table.add_row(entry.module, f"{entry.distance:.5f}", f"{entry.largest:.5f}", cosine)
    return table


def _import(args: argparse.Namespace) -> int:
    checkpoint = resolve_model(args.model)
    shapes = checkpoint.config.adapted_shapes()
    expert = load_sakana(args.file, shapes, max_mult=args.max_mult, base_digest=checkpoint.digest())
    return _save(expert, args)


def _save(expert: Expert, args: argparse.Namespace) -> int:
    expert.save(args.output, half=args.half)
    print(args.output)
    return 0


def _printable(text: str) -> str:
    """A file's own text without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)
