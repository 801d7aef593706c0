"""The experts that come with the package, trained for the default model."""

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
