"""How fast are other servers on the same requests, and our experts inside them?"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from zweave.errors import ZweaveError

from ...harness.harness import Outcome, find, measure, per_second, ratio
from ...harness.options import chosen, pace
from ...harness.report import Column, Report, Row
from ..fixtures import Fixtures
from ..workload import Workload
from .peer import AdapterFiles, Peer, peer_provider

COLUMNS = (
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("tok_s", "new tokens/s", ".1f"),
    Column("seconds", "s", ".2f"),
    Column("vs_vllm", "x vllm", ".2f"),
    Column("vs_vllm_lora", "x vllm-lora0", ".2f"),
    Column("vs_transformers", "x transformers", ".2f"),
    Column("vs_llama_q4_0", "x llama.cpp-q4_0", ".2f"),
    Column("error", "regret", ".4f"),
)


def _peers(many: int) -> dict[str, Peer]:
    lora = {"enable_lora": True, "max_loras": many, "max_lora_rank": 16}
    svf = {"enable_lora": True, "max_loras": many, "quantization": "svf"}
    return {
        "zweave0": Peer("zweave"),
        f"zweave{many}": Peer("zweave", many),
        f"zweave{many}-leading": Peer("zweave", many, "leading"),
        f"zweave-lora{many}-r16": Peer("zweave", many, "lora"),
        "zweave0-grid": Peer("zweave", weights="grid"),
        f"zweave{many}-grid": Peer("zweave", many, weights="grid"),
        f"zweave{many}-leading-grid": Peer("zweave", many, "leading", weights="grid"),
        f"zweave{many}-refit": Peer("zweave", many, weights="refit"),
        "vllm": Peer("vllm"),
        "vllm-lora0": Peer("vllm", options=lora),
        f"vllm-lora{many}-r16": Peer("vllm", many, "lora", options=lora),
        "vllm-zweave1": Peer("vllm", 1, options=svf),
        f"vllm-zweave{many}": Peer("vllm", many, options=svf),
        f"vllm-zweave{many}-leading": Peer("vllm", many, "leading", options=svf),
        "transformers": Peer("transformers"),
        f"transformers-zweave{many}": Peer("attached", many),
        f"transformers-zweave{many}-leading": Peer("attached", many, "leading"),
        f"peft-lora{many}-r16": Peer("peft", many, "lora"),
        "llama.cpp": Peer("llama.cpp"),
        "llama.cpp-q8_0": Peer("llama.cpp", weights="q8_0"),
        "llama.cpp-q4_0": Peer("llama.cpp", weights="q4_0"),
        "llama.cpp-q4_1": Peer("llama.cpp", weights="q4_1"),
        f"llama.cpp-lora{many}-r16": Peer("llama.cpp", many, "lora"),
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
        files = AdapterFiles(folder, fixtures)
        providers = []
        for name in names:
            try:
                peer = peers[name]
                providers.append(
                    peer_provider(name, peer, fixtures, workload, files, stack, experts=peer.adapters)
                )
            except ZweaveError as error:
                missing.append(f"Left out {name}: {error}")
        outcomes = measure(providers, pace(args, warmup=0))
    work = f"{args.requests} requests of {args.prompt} prompt and {args.new} new tokens"
    return Report(
        "peers", f"{work}, {args.dtype}, medians of turns", COLUMNS, _rows(outcomes, workload), notes=missing
    )


def _rows(outcomes: Sequence[Outcome], workload: Workload) -> list[Row]:
    bases = {
        "vs_vllm": "vllm", "vs_vllm_lora": "vllm-lora0", "vs_transformers": "transformers",
        "vs_llama_q4_0": "llama.cpp-q4_0",
    }  # fmt: skip
    rows: list[Row] = []
    for outcome in outcomes:
        row = outcome.row() | workload.labels() | {"tok_s": per_second(workload.new_tokens, outcome)}
        rows.append(row | {key: ratio(find(outcomes, name), outcome) for key, name in bases.items()})
    return rows
