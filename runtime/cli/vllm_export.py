"""`zweave vllm-export`: an expert or mixture as the adapter directory that vLLM loads (docs/vllm.md)."""

import argparse
import re
from pathlib import Path
from typing import Any

from zweave.bundled import bundled_experts
from zweave.cli.engine_options import EXPERT_HELP, parse_expert
from zweave.errors import ZweaveError
from zweave.expert import Expert, layer_of
from zweave.integrations.vllm import save_adapter
from zweave.mixture import check_same_kind, mix_experts, spread


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "vllm-export", help="write an expert as an adapter for vLLM", description=__doc__
    )
    parser.add_argument(
        "expert", metavar="EXPERT", help=f"{EXPERT_HELP}, or a mixture NAME=WEIGHT,NAME=WEIGHT"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="the directory to write (named after the expert)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    choice = parse_expert(args.expert)
    if choice is None:
        raise ZweaveError("the base model needs no adapter: ask vLLM for the model's own name")
    directory = args.output or Path(_directory_name(args.expert))
    save_adapter(_mixed(choice) if isinstance(choice, dict) else _load(str(choice)), directory)
    print(directory)
    return 0


def _load(name: str) -> Expert:
    bundled = bundled_experts()
    if name in bundled:
        return Expert.load(bundled[name])
    if name.endswith(".safetensors"):
        return Expert.load(name)
    raise ZweaveError(f"there is no expert {name!r}: give a .safetensors file, or use {', '.join(bundled)}")


def _mixed(weights: dict[str, Any]) -> Expert:
    experts = {name: _load(name) for name in weights}
    check_same_kind([(name, expert.scope, expert.renormalise) for name, expert in experts.items()])
    bases = {expert.base_digest for expert in experts.values() if expert.base_digest}
    if len(bases) > 1:
        raise ZweaveError("the experts were trained for different weights and cannot be mixed")
    layers = 1 + max(layer_of(module) for expert in experts.values() for module in expert.z)
    return mix_experts(
        list(experts.values()), [spread(name, alpha, layers) for name, alpha in weights.items()]
    )


def _directory_name(text: str) -> str:
    """Of an expert's name, file or mixture: "sst2=0.7,trec=0.3" gives sst2-0.7-trec-0.3."""
    return "-".join(Path(part).name.removesuffix(".safetensors") for part in re.split("[=,]", text))
