"""The experts that come with the package, trained for the default model."""

import os
from pathlib import Path

from ..adapters.peft_directory import CONFIG, WEIGHTS, lora_directory
from ..errors import ZweaveError


def bundled_experts() -> dict[str, Path]:
    """Files of the bundled experts by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "data").glob("*.safetensors"))}


def bundled_expert(name: str) -> Path:
    """The file of a bundled expert; ZweaveError if there is none of that name."""
    found = bundled_experts()
    if name not in found:
        raise ZweaveError(f"no expert {name!r} comes with zweave, give a file: there are {', '.join(found)}")
    return found[name]


def expert_source(expert: str | os.PathLike[str]) -> Path:
    """The directory of a LoRA, or the expert file that `expert_file` finds; ZweaveError if there is neither."""
    return lora_directory(expert) or expert_file(expert)


def expert_file(expert: str | os.PathLike[str]) -> Path:
    """The file that a path, or the name of a bundled expert, stands for; a file that is there goes before a name.

    An expert that was exported for vLLM is a file in a directory of its own.
    Raises ZweaveError if there is neither, or a LoRA.
    """
    path, bundled = Path(expert), bundled_experts()
    # Not Path.is_file, which raises for what can be no path, such as a name that is too long.
    if os.path.isfile(path):
        return path
    if lora_directory(path):
        raise ZweaveError(f"{path}: is a LoRA, and this takes experts, which scale singular values")
    is_bare = path.name == str(path)
    if is_bare and path.name in bundled:
        return bundled[path.name]
    if os.path.isfile(path / WEIGHTS):
        return path / WEIGHTS
    if os.path.isdir(path):
        raise ZweaveError(
            f"{path}: is a directory without {CONFIG}: give an expert file, or a LoRA of PEFT's"
        )
    if os.path.exists(path):
        raise ZweaveError(f"{path}: is not a file")
    if path.suffix or not is_bare:
        raise ZweaveError(f"{path}: there is no such file")
    raise ZweaveError(
        f"there is no expert {path.name!r}: give a file, a LoRA's directory, or one that comes with "
        f"zweave: {', '.join(bundled)} (commands that answer prompts take names of --load, too)"
    )
