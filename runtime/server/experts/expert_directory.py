"""A directory of experts and LoRAs that are loaded when they are first asked for."""

import os
from pathlib import Path
from threading import Lock
from typing import Literal, TypeAlias

from ...adapters.peft_directory import ADAPTER_FILES, CONFIG, WEIGHTS, lora_directory
from ...engine.engine import Engine
from ...experts.mixture import DESCRIBED, check_name

Kind: TypeAlias = Literal["expert", "lora"]
Version: TypeAlias = tuple[tuple[int, int, int] | None, ...]


class ExpertDirectory:
    """Loads NAME from NAME.safetensors or the LoRA in the directory NAME; what has changed since is loaded again.

    All methods may be called from any thread.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self.path = path.resolve()
        self._loaded: dict[str, Version] = {}
        self._lock = Lock()

    def kinds(self) -> dict[str, Kind]:
        """What a client may name there, sorted by name; links that lead out of the directory are nothing."""
        found: dict[str, Kind] = {}
        for file in self.path.rglob("*.safetensors"):
            folder = file.parent
            if file.name == WEIGHTS and folder != self.path and lora_directory(folder) is not None:
                found.setdefault(str(folder.relative_to(self.path)), "lora")
            elif not file.is_symlink() or self.inside(file):
                found[str(file.relative_to(self.path).with_suffix(""))] = "expert"
        return {name: found[name] for name in sorted(found) if not name.startswith(DESCRIBED)}

    def source(self, name: str) -> Path | None:
        """An expert's file, else a LoRA's directory; None if there is neither inside the directory."""
        check_name(name)
        return self.inside(self.path / f"{name}.safetensors") or self.lora(self.path / name)

    def inside(self, path: Path) -> Path | None:
        """A file, links followed; None if it is not there, or not in the directory."""
        resolved = self._resolved(path)
        return resolved if resolved is not None and os.path.isfile(resolved) else None

    def lora(self, path: Path) -> Path | None:
        """A LoRA's directory, links followed; None if it is none, or one of its files is not in the directory."""
        folder = self._resolved(path)
        if folder is None or folder == self.path or self.inside(folder / CONFIG) is None:
            return None
        files = (folder / name for name in ADAPTER_FILES)
        is_whole = all(self.inside(file) for file in files if os.path.lexists(file))
        return lora_directory(folder) if is_whole else None

    def ensure(self, name: str) -> bool:
        """Loads an expert that is in the directory, unless that was done already; ZweaveError if it does not fit.

        Returns whether it was loaded.
        """
        source = self.source(name)
        if source is None:
            return False
        with self._lock:
            version = _version(source)
            is_known = name in self._engine.bank
            if is_known and self._loaded.get(name, version) == version:
                return False  # it is this one, or came from elsewhere
            self._engine.load_expert(name, source)
            self._loaded[name] = version
            return True

    def forget(self, name: str) -> None:
        """Has the expert loaded anew when it is next asked for."""
        with self._lock:
            self._loaded.pop(name, None)

    def _resolved(self, path: Path) -> Path | None:
        """A path, links followed; None if it cannot be one, or leads out of the directory."""
        try:
            resolved = (self.path / path).resolve()
            return resolved if resolved.is_relative_to(self.path) else None
        except (OSError, ValueError, RuntimeError):  # too long, what no name can hold, links in a circle
            return None


def _version(source: Path) -> Version:
    """What tells a file, or the files of a LoRA, from what was there before."""
    files = [source / name for name in ADAPTER_FILES] if source.is_dir() else [source]
    return tuple(map(_state, files))


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        state = file.stat()
    except OSError:  # no record, or gone since
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size
