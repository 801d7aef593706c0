"""A GGUF model in one file, or split into several as llama.cpp's gguf-split writes them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ZweaveError, shortened
from .reader import GgufFile, GgufTensor

_PART = re.compile(
    r"(?P<name>.*)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.gguf)?", re.IGNORECASE
)


def part_paths(path: Path) -> list[Path]:
    """All files of the model that a file belongs to, by their names NAME-00001-of-0000N.gguf, in order.

    Raises ZweaveError if one of them is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    name, count, suffix = match["name"], match["count"], match["suffix"] or ""
    paths = [path.with_name(f"{name}-{part:05}-of-{count}{suffix}") for part in range(1, int(count) + 1)]
    if path not in paths:
        raise ZweaveError(f"{path}: a model of {int(count)} parts has no such one; download it again")
    for part in paths:
        if not part.is_file():
            raise ZweaveError(
                f"{part} is missing: the model is split into {int(count)} files, all are needed"
            )
    return paths


class GgufModel:
    """Metadata and tensors of a model in one or several files.

    path: of the first file, which holds the metadata.

    Raises ZweaveError for a damaged file, and for parts that are missing or do not belong together.
    """

    def __init__(self, path: Path) -> None:
        files = [GgufFile(part) for part in part_paths(path)]
        self.path = files[0].path
        self.metadata: dict[str, Any] = files[0].metadata
        self.tensors: dict[str, GgufTensor] = {}
        self._files: dict[str, GgufFile] = {}
        for number, file in enumerate(files):
            _check_part(file, number, len(files))
            for name, tensor in file.tensors.items():
                if name in self.tensors:
                    raise ZweaveError(f"{file.path} holds {name}, which another part holds, too")
                self.tensors[name] = tensor
                self._files[name] = file
        total = self.metadata.get("split.tensors.count")
        if len(files) > 1 and total not in (None, len(self.tensors)):
            raise ZweaveError(
                f"{self.path}: the parts hold {len(self.tensors)} tensors, the first says {shortened(total)}; "
                "they are not of one model"
            )

    def float_chunks(self, name: str) -> Iterator[np.ndarray]:
        """As GgufFile's."""
        return self._files[name].float_chunks(name)

    def stored_rows(self, name: str) -> np.ndarray:
        """As GgufFile's."""
        return self._files[name].stored_rows(name)


def _check_part(file: GgufFile, number: int, count: int) -> None:
    """ZweaveError unless a file is part `number` (from 0) of `count`, as its own metadata say."""
    said_count = file.metadata.get("split.count") or 1
    said_number = file.metadata.get("split.no") or 0
    if (said_number, said_count) == (number, count):
        return
    if count == 1:
        raise ZweaveError(
            f"{file.path} is one of {shortened(said_count)} parts of a model: give all of them their names "
            "NAME-00001-of-0000N.gguf again"
        )
    raise ZweaveError(
        f"{file.path}: its name says part {number + 1} of {count}, its content does not; "
        "the parts are not of one model"
    )
