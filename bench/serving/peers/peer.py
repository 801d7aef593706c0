"""A server beside ours as a provider of a bench: what it serves, the files it wants, how its answers are judged."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zweave.integrations.vllm import save_adapter
from zweave.model.held_weights import HeldWeights

from ...harness.harness import Provider
from ..fixtures import Answers, Fixtures
from ..reference_model import FEW_BITS_LIMIT, REGRET_LIMITS, Changes
from ..workload import Workload
from .llama import LLAMA_WORKER, LlamaFiles, llama_python
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
    weights: a format of llama.cpp's, or in what form our engine holds them; "" for the bench's dtype.
    """

    kind: str
    adapters: int = 0
    changed: str = "always"
    rank: int = LORA_RANK
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""

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

    def llama(self, weights: str) -> LlamaFiles:
        """The files of llama.cpp."""
        return LlamaFiles(self._folder, self._fixtures, weights)

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
    """The provider of a peer, whose process ends with the stack; ZweaveError if there is none for the model."""
    limit = FEW_BITS_LIMIT if peer.weights else REGRET_LIMITS[fixtures.torch_dtype]
    if peer.kind == "llama.cpp":
        python, model = llama_python(), files.llama(peer.weights)
        paths = files.paths(peer)
        job = str(model.job(workload, paths, torch.get_num_threads()))
        process = PeerProcess(python, job, os.environ, [str(LLAMA_WORKER)])
        changes = (lambda _: model.changes) if peer.weights else _changes(peer, fixtures, paths)
    else:
        if peer.kind == "zweave":
            HeldWeights.of(peer.weights or "auto", fixtures.checkpoint)
        python = vllm_python() if peer.in_vllm else Path(sys.executable)
        environment = vllm_environment(python) if peer.in_vllm else os.environ
        paths = files.paths(peer)
        process = PeerProcess(python, json.dumps(_job(peer, fixtures, workload, paths)), environment)
        changes = _changes(peer, fixtures, paths)
    stack.callback(process.close)
    prompts, groups = workload.prompts(fixtures.config), max(1, peer.adapters)

    def regret(answers: Answers) -> float:
        return fixtures.mean_regret(prompts, answers, changes, groups)

    return fixtures.text_provider(name, process, regret, limit, **labels)


def _job(peer: Peer, fixtures: Fixtures, workload: Workload, paths: Sequence[Path]) -> dict[str, Any]:
    """What `peer_worker` loads and answers."""
    return {
        "peer": peer.kind,
        "model": str(fixtures.checkpoint.directory),
        "dtype": fixtures.dtype,
        "threads": torch.get_num_threads(),
        "experts": peer.adapters,
        "leading": peer.changed == "leading",
        "compressed": peer.changed == "compressed",
        "adapters": list(map(str, paths)),
        "rank": peer.rank,
        "weights": peer.weights or "auto",
        "options": dict(peer.options),
        **workload.labels(),
    }


def _changes(peer: Peer, fixtures: Fixtures, paths: Sequence[Path]) -> Callable[[int], Changes | None]:
    """What each adapter changes of the base model's weights."""

    def changes(index: int) -> Changes | None:
        if not peer.adapters:
            return None
        if peer.changed == "lora":
            return lora_changes(paths[index], fixtures.reference_model.base)
        if peer.changed == "compressed":
            return compressed_changes(paths[0], index, fixtures.reference_model.base)
        # Made anew for each peer: kept, the weights of all experts would take more memory than the peers do.
        return fixtures.reference_model.svf(fixtures.expert(peer.changed, index))

    return changes
