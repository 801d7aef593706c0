"""`zweave expert`: shows, makes, mixes, compares, imports, transfers and searches expert files."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..adapters.compression.compressed_file import is_compressed, load_compressed
from ..checkpoint.checkpoint import resolve_model
from ..checkpoint.module_name import layer_of, linear_of
from ..errors import ZweaveError, shortened
from ..experts.bundled import expert_source
from ..experts.difference import Difference, differences
from ..experts.expert import Expert
from ..experts.heatmap import cells, save_png, text_map
from ..experts.mixture import Alpha, mix_named
from ..experts.sakana import load_sakana
from .compressed_table import print_compressed
from .lora_show import lora_facts, lora_maps

_MIX_FORM = "the command is zweave expert mix OUTPUT EXPERT=WEIGHT EXPERT=WEIGHT ..."


def _show(args: argparse.Namespace) -> int:
    source = expert_source(args.file)
    if source.is_dir():
        return _show_lora(source, args)
    if is_compressed(source):
        return _show_compressed(source, args)
    expert = Expert.load(source)
    facts = _facts(expert)
    if args.png:
        save_png(expert, args.png)
    if args.json:
        matrices = [asdict(cell) for _, cell in sorted(cells(expert).items())]
        print(json.dumps(facts | {"matrices": matrices}))
        return 0
    _print_facts(facts)
    if args.png:
        print(f"{'heat map':<12} {args.png}")
    else:
        Console(highlight=False).print(text_map(expert))
    return 0


def _show_lora(directory: Path, args: argparse.Namespace) -> int:
    if args.png:
        raise ZweaveError(f"--png draws z, and {directory} is a LoRA, which has none: leave it out")
    facts = lora_facts(directory)
    if args.json:
        print(json.dumps(facts))
        return 0
    matrices = facts.pop("matrices")
    _print_facts(facts)
    for table in lora_maps(matrices):
        Console(highlight=False).print(table)
    return 0


def _print_facts(facts: Mapping[str, Any]) -> None:
    width = 1 + max(12, *map(len, facts))
    for key, value in facts.items():
        print(f"{key:<{width}}{_printable(value if isinstance(value, str) else json.dumps(value))}")


def _show_compressed(file: Path, args: argparse.Namespace) -> int:
    if args.png:
        raise ZweaveError(f"--png draws z, and {file} holds LoRAs, which have none: leave it out")
    print_compressed(load_compressed(file), file, args.json)
    return 0


def run(args: argparse.Namespace) -> int:
    """The command that `args.command` names."""
    return {"show": _show, "new": _new, "mix": _mix, "diff": _diff, "import": _import}[args.command](args)


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
    if _alphas(str(args.output)):
        raise ZweaveError(f"{args.output} is a part, and {_MIX_FORM}, with the file to write first")
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
    path, numbers = Path(text.rpartition("=")[0]), _alphas(text)
    if not numbers:
        raise ZweaveError(
            f"a part is EXPERT=WEIGHT or EXPERT=WEIGHT,WEIGHT,... (one a layer), not {shortened(text)}: {_MIX_FORM}"
        )
    if "," in path.name and _alphas(path.name.split(",")[0]) and not path.exists():
        raise ZweaveError(f"spaces stand between the parts, not commas, as in {shortened(text)}: {_MIX_FORM}")
    return path, numbers[0] if len(numbers) == 1 else numbers


def _alphas(text: str) -> tuple[float, ...]:
    """The weights behind the = of a part; none if the text is no part."""
    path, _, weights = text.rpartition("=")
    try:
        numbers = tuple(float(weight) for weight in weights.split(","))
    except ValueError:
        return ()
    return numbers if path and all(map(math.isfinite, numbers)) else ()


def _diff(args: argparse.Namespace) -> int:
    a, b = Expert.load(args.a), Expert.load(args.b)
    found, same_prompt = differences(a, b), a.prompt_template == b.prompt_template
    if args.json:
        matrices, total = [asdict(entry) for entry in found[:-1]], asdict(found[-1])
        print(json.dumps({"matrices": matrices, "total": total, "same_prompt": same_prompt}))
        return 0
    console = Console(highlight=False)
    console.print(_difference_table(_summary(found)))
    if args.all:
        console.print(_difference_table(found[:-1]))
    else:
        console.print(f"each of the {len(found) - 1} matrices: --all, or --json")
    if not same_prompt:
        console.print("their prompt templates differ: zweave expert show FILE prints each")
    return 0


def _summary(found: Sequence[Difference]) -> list[Difference]:
    """The total, and of each kind of matrix the one that differs most."""
    *matrices, total = found
    most: dict[str, Difference] = {}
    for entry in sorted(matrices, key=lambda entry: entry.distance, reverse=True):
        most.setdefault(linear_of(entry.module), entry)
    return [total, *most.values()]


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
