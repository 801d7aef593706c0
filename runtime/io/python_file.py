"""A user's own Python file, run for an object that it makes."""

import hashlib
import importlib.util
import sys
from pathlib import Path

from ..errors import ZweaveError, one_line


def python_object(path: Path, name: str) -> object:
    """The object that the file calls `name`, None if there is none.

    The file is run as `python FILE` does, though not as `__main__`: it imports its neighbours, then and later, and
    stays a module that its classes belong to. Raises ZweaveError with the file's error if it fails.
    """
    folder = str(path.resolve().parent)
    # Of two files of one name in two folders each has a module of its own.
    digest = hashlib.sha256(folder.encode(errors="surrogateescape")).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"zweave_user_{path.stem}_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ZweaveError:
        del sys.modules[spec.name]
        raise
    # The file is the user's program: it may fail in any way, or leave.
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ZweaveError(f"{path} fails: {one_line(error, with_type=True)}") from error
    return getattr(module, name, None)
