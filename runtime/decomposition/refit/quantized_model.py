"""The refit factors of all matrices of a model, as an entry of the cache."""

from pathlib import Path
from typing import Any

from zweave.kernels import SYMMETRIC, GridKind

from ...checkpoint.hf_config import read_json
from ...checkpoint.weight_source import WeightSource
from ...errors import ZweaveError
from ...io.cache_dir import cache_dir
from .refit import Refit
from .refit_file import load_refit

FORMAT = "zweave-refit-2"
# Of the base in the names of `divergence_file`.
BASE = "base"


class QuantizedModel:
    """A file a matrix, an index of their errors and bytes, and the KL of what was measured."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index: dict[str, Any] = _read_json(index_file(directory))
        if self.index.get("format") != FORMAT or not isinstance(self.index.get("matrices"), dict):
            raise _damaged(index_file(directory))

    @classmethod
    def open(cls, source: WeightSource) -> "QuantizedModel":
        """Opens the factors of a model that `zweave quantize` was asked for last.

        Raises ZweaveError if there are none, or their index is damaged.
        """
        # The digest of a large model takes long.
        digest = source.digest() if _root().is_dir() else ""
        made = list(entries_directory(digest).glob("*/index.json")) if digest else []
        if not made:
            raise ZweaveError(
                "the model has no refit factors: run `zweave quantize MODEL`, or take weights='auto'"
            )
        found = cls(max(made, key=lambda path: path.stat().st_mtime_ns).parent)
        if (
            found.index.get("digest") != digest
            or found.index["matrices"].keys() != source.adapted_shapes().keys()
        ):
            raise _damaged(index_file(found.directory))
        return found

    @property
    def errors(self) -> dict[str, float]:
        """Relative error of each matrix's outputs on the calibration text."""
        return {module: entry["error"] for module, entry in self.index["matrices"].items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the factors, their scales in 16 bits."""
        return sum(entry["bytes"] for entry in self.index["matrices"].values())

    @property
    def grids(self) -> dict[str, tuple[GridKind, GridKind]]:
        """Module to the grids on which its U and its V^T lie."""
        try:
            return {
                module: (SYMMETRIC[entry["u"]], SYMMETRIC[entry["vt"]])
                for module, entry in self.index["matrices"].items()
            }
        except (KeyError, TypeError, AttributeError):
            raise _damaged(index_file(self.directory)) from None

    def matrix(self, module: str) -> Refit:
        """The factors of a matrix; ZweaveError if their file is damaged, or not what the index says."""
        path = matrix_file(self.directory, module)
        try:
            found = load_refit(path)
        except ZweaveError as error:
            raise ZweaveError(f"{error}: run `zweave quantize MODEL --force`") from None
        if not index_entry(found).items() <= self.index["matrices"].get(module, {}).items():
            raise _damaged(path)
        return found

    def divergence(self, expert: str = BASE) -> float | None:
        """The mean KL a token, in nats, of the base or of the expert with this digest; None if it was not measured.

        Raises ZweaveError if its file is damaged.
        """
        path = divergence_file(self.directory, expert)
        if not path.is_file():
            return None
        try:
            return float(_read_json(path)["kl"])
        except (KeyError, TypeError, ValueError):
            raise _damaged(path) from None


def index_entry(refit: Refit) -> dict[str, Any]:
    """What an index says of a matrix."""
    shape = [refit.u.shape[0], refit.vt.shape[1]]
    return {"shape": shape, "bytes": refit.nbytes, "u": refit.u.format, "vt": refit.vt.format}


def entries_directory(digest: str) -> Path:
    """Where the entries lie of the weights with this digest, one for each text that calibrated."""
    return _root() / digest


def _root() -> Path:
    return cache_dir() / "quantized"


def index_file(directory: Path) -> Path:
    return directory / "index.json"


def matrix_file(directory: Path, module: str) -> Path:
    return directory / f"{module}.safetensors"


def divergence_file(directory: Path, expert: str) -> Path:
    """expert: its digest, or BASE."""
    return directory / f"divergence-{expert}.json"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ZweaveError:
        raise _damaged(path) from None


def _damaged(path: Path) -> ZweaveError:
    return ZweaveError(f"{path} is damaged: run `zweave quantize MODEL --force`")
