"""`zweave vllm-export`: an expert or mixture as the adapter directory that vLLM loads (docs/vllm.md)."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ZweaveError
from ..experts.expert import Expert
from ..experts.mixture import mix_named
from ..integrations.vllm import ADAPTER_FILES, save_adapter
from ..options.engine_options import parse_expert
from ..options.file_options import check_output


def run(args: argparse.Namespace) -> int:
    choice: Any = parse_expert(args.expert)
    if choice is None:
        raise ZweaveError("the base model needs no adapter: ask vLLM for the model's own name")
    directory = args.output or Path(_directory_name(args.expert))
    if directory.is_dir():
        for name in ADAPTER_FILES:
            check_output(args, "--output", directory / name)
    if isinstance(choice, Mapping):
        expert = mix_named([(name, Expert.load(name), alpha) for name, alpha in choice.items()])
    else:
        expert = Expert.load(choice)
    save_adapter(expert, directory)
    print(directory)
    return 0


def _directory_name(text: str) -> str:
    """The directory for an expert's name, file or mixture: "sst2=0.7,trec=0.3" gives sst2-0.7-trec-0.3."""
    return "-".join(Path(part).name.removesuffix(".safetensors") for part in re.split("[=,]", text))
