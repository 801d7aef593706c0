"""llama.cpp as a peer: its interpreter, the files that it reads, and what it is judged by."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from ..fixtures import Fixtures
from ..workload import Workload, turns
from .gguf_files import read_matrices, write_gguf, write_gguf_lora
from .interpreters import named_python

VARIABLE = "ZWEAVE_LLAMA_PYTHON"
LLAMA_WORKER = Path(__file__).with_name("llama_worker.py")


def llama_python() -> Path:
    """The interpreter that ZWEAVE_LLAMA_PYTHON names, or ours where it has llama-cpp-python; ZweaveError for none."""
    if not os.environ.get(VARIABLE) and find_spec("llama_cpp") is not None:
        return Path(sys.executable)
    return named_python(VARIABLE, "llama-cpp-python", "llama_environment.sh")


class LlamaFiles:
    """A model and its adapters in GGUF files in a folder, written when wanted.

    weights: "" for those of the bench's dtype, or a format of llama.cpp's, to which the worker quantises them.
    """

    def __init__(self, folder: Path, fixtures: Fixtures, weights: str) -> None:
        self._folder, self._fixtures, self._weights = folder, fixtures, weights
        self._source = folder / "model.gguf"
        self._model = folder / f"model-{weights}.gguf" if weights else self._source

    def job(self, workload: Workload, adapters: Sequence[Path], threads: int) -> Path:
        """The file that tells the worker what to load and to answer."""
        config = self._fixtures.config
        if not self._source.is_file():
            write_gguf(self._fixtures.checkpoint, self._source, self._fixtures.dtype)
        files = [(path, path.with_suffix(".gguf")) for path in adapters]
        for path, file in files:
            if not file.is_file():
                write_gguf_lora(path, file, config)
        served: list[str | None] = [str(file) for _, file in files] or [None]
        job = {
            "source": str(self._source),
            "model": str(self._model),
            "format": self._weights,
            "threads": threads,
            "prompts": workload.prompts(config),
            "new": workload.new,
            "turns": turns(served, workload.requests),
        }
        path = self._folder / f"llama-{self._weights}-{len(adapters)}.json"
        path.write_text(json.dumps(job))
        return path

    @cached_property
    def changes(self) -> Mapping[str, Tensor]:
        """The matrices that a quantised file stands for, once the worker has written it."""
        return read_matrices(self._model, self._fixtures.config)
