"""A server beside ours as a provider of a bench: what it serves, the files it wants, how its answers are judged."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from zweave.errors import ZweaveError
from zweave.integrations.vllm import save_adapter

from ...harness.harness import Provider
from ..fixtures import Answers, Fixtures
from ..reference_model import Changes
from ..workload import Workload
from .lora_files import compressed_changes, lora_changes, write_compressed, write_lora
from .peer_process import PeerProcess
from .peer_providers import LORA_RANK
from .vllm_environment import vllm_environment, vllm_python


@dataclass(frozen=True, slots=True)
class Peer:
    """A server beside ours.

    kind: which function of peer_worker serves it.
    adapters: how many, each request under one of them; more than there are requests take turns.
    changed: what the adapters are: our experts, "always" or "leading" (an eighth of the components), "lora", or
        "compressed", LoRAs in one file.
    rank: of LoRAs, or of the basis of compressed ones.
    options: of vLLM.
    """

    kind: str
    adapters: int = 0
    changed: str = "always"
    rank: int = LORA_RANK
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_vllm(self) -> bool:
        return self.kind == "vllm"


class AdapterFiles:
    """Directories of random adapters, written when wanted."""

    def __init__(self, folder: Path, fixtures: Fixtures) -> None:
        self._folder, self._fixtures = folder, fixtures

    def paths(self, peer: Peer) -> list[Path]:
        """Of the adapters of a peer that reads them from files; one file holds all compressed ones."""
        if peer.changed == "compressed":
            return [self._compressed(peer)]
        if peer.in_vllm or peer.changed == "lora":
            return [self._path(peer, index) for index in range(peer.adapters)]
        return []

    def gguf(self, paths: Sequence[Path]) -> tuple[Path, list[Path]]:
        """The model and adapters in the files that llama.cpp reads; ZweaveError if it is not installed."""
        for module, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
            if find_spec(module) is None:
                raise ZweaveError(f"it needs {package}: pip install {package}")
        from .gguf_files import write_gguf, write_gguf_lora

        checkpoint, model = self._fixtures.checkpoint, self._folder / "model.gguf"
        if not model.is_file():
            write_gguf(checkpoint, model, self._fixtures.dtype)
        files = [(path, path.with_suffix(".gguf")) for path in paths]
        for path, file in files:
            if not file.is_file():
                write_gguf_lora(path, file, checkpoint.config)
        return model, [file for _, file in files]

    def _compressed(self, peer: Peer) -> Path:
        path = self._folder / f"compressed-{peer.adapters}-{peer.rank}.safetensors"
        if not path.is_file():
            write_compressed(path, self._fixtures.config.adapted_shapes(), peer.adapters, peer.rank)
        return path

    def _path(self, peer: Peer, index: int) -> Path:
        if peer.changed == "lora":
            path = self._folder / f"lora-r{peer.rank}-{index}"
            if not path.is_dir():
                write_lora(path, self._fixtures.config.adapted_shapes(), index, peer.rank)
            return path
        path = self._folder / f"{peer.changed}-{index}"
        if not path.is_dir():
            save_adapter(self._fixtures.expert(peer.changed, index), path)
        return path


def peer_provider(
    name: str,
    peer: Peer,
    fixtures: Fixtures,
    workload: Workload,
    files: AdapterFiles,
    stack: ExitStack,
    **labels: object,
) -> Provider:
    """The provider of a peer, whose process ends with the stack; ZweaveError if it is not installed."""
    if peer.in_vllm:
        python = vllm_python()
        environment = vllm_environment(python)
    else:
        python, environment = Path(sys.executable), dict(os.environ)
    paths = files.paths(peer)
    model, served = files.gguf(paths) if peer.kind == "llama.cpp" else (None, paths)
    job = {
        "peer": peer.kind,
        "model": str(fixtures.checkpoint.directory),
        "dtype": fixtures.dtype,
        "threads": torch.get_num_threads(),
        "experts": peer.adapters,
        "leading": peer.changed == "leading",
        "compressed": peer.changed == "compressed",
        "adapters": list(map(str, served)),
        "gguf": str(model),
        "rank": peer.rank,
        "options": dict(peer.options),
        **workload.labels(),
    }
    process = PeerProcess(python, job, environment)
    stack.callback(process.close)
    judge = _regret(peer, fixtures, workload.prompts(fixtures.config), paths)
    return fixtures.text_provider(name, process, judge, **labels)


def _regret(
    peer: Peer, fixtures: Fixtures, prompts: Sequence[Sequence[int]], paths: Sequence[Path]
) -> Callable[[Answers], float]:
    def changes(index: int) -> Changes | None:
        if not peer.adapters:
            return None
        if peer.changed == "lora":
            return lora_changes(paths[index], fixtures.reference_model.base)
        if peer.changed == "compressed":
            return compressed_changes(paths[0], index, fixtures.reference_model.base)
        # Made anew for each peer: kept, the weights of all experts would take more memory than the peers do.
        return fixtures.reference_model.svf(fixtures.expert(peer.changed, index))

    return lambda answers: fixtures.mean_regret(prompts, answers, changes, max(1, peer.adapters))
