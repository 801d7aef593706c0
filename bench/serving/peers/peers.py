"""How fast are other servers on the same requests, and our experts inside them?"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zweave.errors import ZweaveError
from zweave.integrations.vllm import save_adapter

from ...harness.harness import Outcome, Provider, find, measure, per_second, ratio
from ...harness.options import chosen, pace
from ...harness.report import Column, Report, Row
from ..fixtures import Answers, Fixtures
from ..reference_model import Changes
from ..workload import Workload
from .lora_files import lora_changes, write_lora
from .peer_process import PeerProcess
from .vllm_environment import vllm_environment, vllm_python

COLUMNS = (
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("tok_s", "new tokens/s", ".1f"),
    Column("seconds", "s", ".2f"),
    Column("vs_vllm", "x vllm", ".2f"),
    Column("vs_vllm_lora", "x vllm-lora0", ".2f"),
    Column("vs_transformers", "x transformers", ".2f"),
    Column("error", "regret", ".4f"),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server beside ours.

    kind: which function of peer_worker serves it.
    adapters: how many, each request under one of them.
    changed: what the adapters are: our experts, "always" or "leading" (an eighth of the components), or "lora".
    options: of vLLM.
    """

    kind: str
    adapters: int = 0
    changed: str = "always"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_vllm(self) -> bool:
        return self.kind == "vllm"


def _peers(many: int) -> dict[str, Peer]:
    lora = {"enable_lora": True, "max_loras": many, "max_lora_rank": 16}
    svf = {"enable_lora": True, "max_loras": many, "quantization": "svf"}
    return {
        "zweave0": Peer("zweave"),
        f"zweave{many}": Peer("zweave", many),
        f"zweave-lora{many}-r16": Peer("zweave", many, "lora"),
        "vllm": Peer("vllm"),
        "vllm-lora0": Peer("vllm", options=lora),
        f"vllm-lora{many}-r16": Peer("vllm", many, "lora", lora),
        "vllm-zweave1": Peer("vllm", 1, options=svf),
        f"vllm-zweave{many}": Peer("vllm", many, options=svf),
        f"vllm-zweave{many}-leading": Peer("vllm", many, "leading", svf),
        "transformers": Peer("transformers"),
        f"transformers-zweave{many}": Peer("attached", many),
        f"transformers-zweave{many}-leading": Peer("attached", many, "leading"),
        f"peft-lora{many}-r16": Peer("peft", many, "lora"),
    }


def run(args: argparse.Namespace) -> Report:
    peers = _peers(args.experts)
    names = chosen(args.providers, peers) if args.providers else list(peers)
    fixtures = Fixtures(args.model, args.dtype)
    if args.prompt + args.new > fixtures.config.max_position:
        raise ZweaveError(f"the model takes {fixtures.config.max_position} tokens: lower --prompt or --new")
    workload = Workload(args.requests, args.prompt, args.new)
    missing: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        adapters = _Adapters(folder, fixtures)
        providers = []
        for name in names:
            try:
                providers.append(_provider(name, peers[name], fixtures, workload, adapters, stack))
            except ZweaveError as error:
                missing.append(f"Left out {name}: {error}")
        outcomes = measure(providers, pace(args, warmup=0))
    work = f"{args.requests} requests of {args.prompt} prompt and {args.new} new tokens"
    return Report(
        "peers", f"{work}, {args.dtype}, medians of turns", COLUMNS, _rows(outcomes, workload), notes=missing
    )


class _Adapters:
    """Directories of random adapters, written when wanted."""

    def __init__(self, folder: Path, fixtures: Fixtures) -> None:
        self._folder, self._fixtures = folder, fixtures

    def paths(self, kind: str, count: int) -> list[Path]:
        return [self._path(kind, index) for index in range(count)]

    def _path(self, kind: str, index: int) -> Path:
        path = self._folder / f"{kind}{index}"
        if not path.is_dir():
            if kind == "lora":
                write_lora(path, self._fixtures.config.adapted_shapes(), index)
            else:
                save_adapter(self._fixtures.expert(kind, index), path)
        return path


def _provider(
    name: str, peer: Peer, fixtures: Fixtures, workload: Workload, adapters: _Adapters, stack: ExitStack
) -> Provider:
    paths = adapters.paths(peer.changed, peer.adapters) if peer.in_vllm or peer.changed == "lora" else []
    job = {
        "peer": peer.kind,
        "model": str(fixtures.checkpoint.directory),
        "dtype": fixtures.dtype,
        "threads": torch.get_num_threads(),
        "experts": peer.adapters,
        "leading": peer.changed == "leading",
        "adapters": list(map(str, paths)),
        "options": dict(peer.options),
        **workload.labels(),
    }
    if peer.in_vllm:
        python = vllm_python()
        environment = vllm_environment(python)
    else:
        python, environment = Path(sys.executable), dict(os.environ)
    process = PeerProcess(python, job, environment)
    stack.callback(process.close)
    return fixtures.text_provider(
        name,
        process,
        _regret(peer, fixtures, workload.prompts(fixtures.config), paths),
        experts=peer.adapters,
    )


def _regret(
    peer: Peer, fixtures: Fixtures, prompts: Sequence[Sequence[int]], paths: Sequence[Path]
) -> Callable[[Answers], float]:
    def changes(index: int) -> Changes | None:
        if not peer.adapters:
            return None
        if peer.changed == "lora":
            return lora_changes(paths[index], fixtures.reference_model.base)
        # Made anew for each peer: kept, the weights of all experts would take more memory than the peers do.
        return fixtures.reference_model.svf(fixtures.expert(peer.changed, index))

    return lambda answers: fixtures.mean_regret(prompts, answers, changes, max(1, peer.adapters))


def _rows(outcomes: Sequence[Outcome], workload: Workload) -> list[Row]:
    bases = {"vs_vllm": "vllm", "vs_vllm_lora": "vllm-lora0", "vs_transformers": "transformers"}
    rows: list[Row] = []
    for outcome in outcomes:
        row = outcome.row() | workload.labels() | {"tok_s": per_second(workload.new_tokens, outcome)}
        rows.append(row | {key: ratio(find(outcomes, name), outcome) for key, name in bases.items()})
    return rows
