"""The experts that come with the package, trained for the default model."""

from os import PathLike
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


def expert_file(expert: str | PathLike[str]) -> Path:
    """The file that a path, or the name of a bundled expert, stands for; a file that is there goes before a name.

    Raises ZweaveError for a bare name that is neither.
    """
    path, bundled = Path(expert), bundled_experts()
    if path.is_file() or path.suffix or path.name != str(path):
        return path
    if path.name in bundled:
        return bundled[path.name]
    if not path.exists():
        raise ZweaveError(
            f"{path}: there is no such file, and no expert of that name comes with zweave: "
            f"there are {', '.join(bundled)}"
        )
    return path
