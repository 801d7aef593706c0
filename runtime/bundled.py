"""The experts that come with the package, trained for the default model."""

from pathlib import Path

DEFAULT_MODEL = "smollm2"


def bundled_experts() -> dict[str, Path]:
    """Files of the bundled experts by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "experts").glob("*.safetensors"))}
