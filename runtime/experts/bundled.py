"""The experts that come with the package, trained for the default model."""

import os
from pathlib import Path

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


def expert_file(expert: str | os.PathLike[str]) -> Path:
    """The file that a path, or the name of a bundled expert, stands for; a file that is there goes before a name.

    Raises ZweaveError if there is neither.
    """
    path, bundled = Path(expert), bundled_experts()
    # Not Path.is_file, which raises for what can be no path, such as a name that is too long.
    if os.path.isfile(path):
        return path
    is_bare = path.name == str(path)
    if is_bare and path.name in bundled:
        return bundled[path.name]
    if os.path.exists(path):
        raise ZweaveError(f"{path}: is not a file")
    if path.suffix or not is_bare:
        raise ZweaveError(f"{path}: there is no such file")
    raise ZweaveError(
        f"there is no expert {path.name!r}: give a file, or one that comes with zweave: {', '.join(bundled)} "
        "(commands that answer prompts take names of --load, too)"
    )
