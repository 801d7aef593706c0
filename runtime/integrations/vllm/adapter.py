"""An expert as an adapter directory, as vLLM's LoRA support loads it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...checkpoint.module_name import linear_of
from ...errors import ZweaveError
from ...experts.expert import Expert
from ...io.atomic_write import write_text
from ...io.cache_dir import disk_errors
from ...io.json_text import parse_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG, TENSORS)
FORMAT = "zweave-vllm-1"


def save_adapter(expert: Expert, directory: str | Path) -> None:
    """Writes an expert as an adapter directory: a PEFT config and the expert file, z in float32.

    The config names the expert's prompt template, too: vLLM takes prompts as its clients write them.

    Raises ZweaveError for an expert that acts after the prompt only, as vLLM adapts whole requests, and if the
    directory cannot be written.
    """
    if expert.scope != "always":
        raise ZweaveError(
            "the expert acts after the prompt only, and vLLM adapts whole requests: serve it with zweave.Engine"
        )
    directory = Path(directory)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": sorted(set(map(linear_of, expert.z))),
        "zweave": {
            "format": FORMAT,
            "digest": expert.digest,
            "base_digest": expert.base_digest,
            "description": expert.description,
        },
    }
    if expert.prompt_template is not None:
        config["zweave"]["prompt_template"] = asdict(expert.prompt_template)
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        expert.save(directory / TENSORS)
        write_text(directory / CONFIG, json.dumps(config, indent=1) + "\n")


def is_adapter(directory: str | Path) -> bool:
    """Whether `save_adapter` wrote a directory; false for other kinds of adapters."""
    try:
        config = parse_json((Path(directory) / CONFIG).read_text("utf-8"), unique_keys=False)
        return config["zweave"]["format"] == FORMAT
    except (OSError, ValueError, LookupError, TypeError):
        return False


def load_adapter(directory: str | Path) -> Expert:
    """The expert of an adapter directory; ZweaveError if it holds none, or a damaged one."""
    if not is_adapter(directory):
        raise ZweaveError(f"{directory} holds no expert: write one with `zweave vllm-export EXPERT -o DIR`")
    expert = Expert.load(Path(directory) / TENSORS)
    if expert.scope != "always":
        raise ZweaveError(f"{directory}: the expert acts after the prompt only, which vLLM cannot serve")
    return expert
