"""The generator that comes with the package, trained for the default model."""

import os
from pathlib import Path

from ..errors import ZweaveError
from ..names import DEFAULT_MODEL

_FOLDER = Path(__file__).parent / "data"


def generator_file(generator: str | os.PathLike[str] = DEFAULT_MODEL) -> Path:
    """The file that the name of a bundled generator, or a path, stands for; ./NAME is always a path.

    Raises ZweaveError if there is neither.
    """
    named = os.fspath(generator)
    bundled = {file.stem: file for file in sorted(_FOLDER.glob("*.safetensors"))}
    if named in bundled:
        return bundled[named]
    if os.path.isfile(named):
        return Path(named)
    raise ZweaveError(
        f"there is no generator {named!r}: give a file of zweave train-describe, or one that comes with zweave: "
        f"{', '.join(bundled)}"
    )
