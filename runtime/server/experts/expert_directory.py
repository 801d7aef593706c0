"""A directory of experts that are loaded when they are first asked for."""

from pathlib import Path
from threading import Lock

from ...engine.engine import Engine
from ...experts.mixture import check_name


class ExpertDirectory:
    """Loads NAME from NAME.safetensors; a file that has changed since is loaded again.

    All methods may be called from any thread.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self.path = path.resolve()
        self._loaded: dict[str, tuple[int, int, int]] = {}
        self._lock = Lock()

    def names(self) -> list[str]:
        """Of the experts that are there, sorted; links that lead out of the directory are no experts."""
        files = self.path.rglob("*.safetensors")
        found = (file for file in files if not file.is_symlink() or self.inside(file))
        return sorted(str(file.relative_to(self.path).with_suffix("")) for file in found)

    def file(self, name: str) -> Path | None:
        """An expert's file; None if there is none inside the directory."""
        check_name(name)
        return self.inside(self.path / f"{name}.safetensors")

    def inside(self, path: Path) -> Path | None:
        """A file, links followed; None if it is not there, or not in the directory."""
        try:
            resolved = (self.path / path).resolve()
            return resolved if resolved.is_relative_to(self.path) and resolved.is_file() else None
        except (OSError, ValueError, RuntimeError):  # too long, what no name can hold, links in a circle
            return None

    def ensure(self, name: str) -> bool:
        """Loads an expert that is in the directory, unless that was done already; ZweaveError if it does not fit.

        Returns whether it was loaded.
        """
        file = self.file(name)
        if file is None:
            return False
        with self._lock:
            state = file.stat()
            version = (state.st_ino, state.st_mtime_ns, state.st_size)
            is_known = name in self._engine.bank
            if is_known and self._loaded.get(name, version) == version:
                return False  # it is this file, or came from elsewhere
            self._engine.load_expert(name, file)
            self._loaded[name] = version
            return True

    def forget(self, name: str) -> None:
        """Has the expert loaded anew when it is next asked for."""
        with self._lock:
            self._loaded.pop(name, None)
