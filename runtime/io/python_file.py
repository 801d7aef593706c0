"""A user's own Python file, run for an object that it makes."""

import importlib.util
from pathlib import Path

from ..errors import ZweaveError, one_line


def python_object(path: Path, name: str) -> object:
    """The object that the file calls `name`, None if there is none; ZweaveError with the file's error if it fails."""
    spec = importlib.util.spec_from_file_location(f"zweave_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ZweaveError:
        raise
    # The file is the user's program: it may fail in any way.
    except Exception as error:
        raise ZweaveError(f"{path} fails: {one_line(error, with_type=True)}") from error
    return getattr(module, name, None)
