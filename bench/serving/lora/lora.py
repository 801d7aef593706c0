"""What does it cost to serve many LoRA adapters at once, here and elsewhere?"""

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from zweave.errors import ZweaveError

from ...harness.harness import Outcome, Pace, find, measure, per_second, ratio
from ...harness.options import pace
from ...harness.report import Column, Report, Row
from ..fixtures import Fixtures
from ..peers.peer import AdapterFiles, Peer, peer_provider
from ..workload import Workload
from .loading import loading_rows
from .lora_peers import ALONE, ALONE_BESIDE, alone_peers, batch_peers

COLUMNS = (
    Column("provider", "provider"),
    Column("work", "work"),
    Column("rank", "rank", "d"),
    Column("adapters", "adapters", "d"),
    Column("seconds", "s", ".3f"),
    Column("tok_s", "new tokens/s", ".1f"),
    Column("vs_base", "x base", ".3f"),
    Column("vs_vllm", "x vllm", ".2f"),
    Column("vs_vllm_lora", "x vllm-lora", ".2f"),
    Column("vs_peft", "x peft", ".2f"),
    Column("vs_compressed", "x compressed", ".3f"),
    Column("vs_one", "time / one resident", ".3f"),
    Column("slowest", "slowest s", ".3f"),
    Column("slowest_ratio", "slowest / median", ".2f"),
    Column("error", "regret", ".4f"),
)
# A request alone is short, and the difference that is looked for small.
_ALONE_ROUNDS = 4


def run(args: argparse.Namespace) -> Report:
    fixtures = Fixtures(args.model, args.dtype)
    if args.prompt + args.new > fixtures.config.max_position:
        raise ZweaveError(f"the model takes {fixtures.config.max_position} tokens: lower --prompt or --new")
    rows: list[Row] = []
    notes: list[str] = []
    for rank in args.ranks:
        with tempfile.TemporaryDirectory(prefix="zweave-") as folder:
            files = AdapterFiles(Path(folder), fixtures)
            rows += _batch_rows(args, rank, fixtures, files, notes)
            if "alone" in args.parts:
                rows += _alone_rows(args, rank, fixtures, files)
            if "loading" in args.parts:
                workload = Workload(args.requests, args.prompt, args.new)
                rows += loading_rows(fixtures, workload, rank, args.rounds, Path(folder))
    work = f"{args.requests} requests of {args.prompt} prompt and {args.new} new tokens"
    title = f"LoRA adapters: {work}, {args.dtype}, medians of turns"
    return Report("lora", title, COLUMNS, rows, sections=("rank", "work"), notes=list(dict.fromkeys(notes)))


def _batch_rows(
    args: argparse.Namespace, rank: int, fixtures: Fixtures, files: AdapterFiles, notes: list[str]
) -> list[Row]:
    workload = Workload(args.requests, args.prompt, args.new)
    peers = batch_peers(args.parts, rank, args.basis, args.adapters, args.peer_adapters, args.requests)
    outcomes = _measured(peers, "batch", rank, fixtures, workload, files, pace(args, warmup=0), notes)
    few = args.peer_adapters[0]
    bases = {
        "vs_base": "zweave", "vs_vllm": "vllm", "vs_vllm_lora": f"vllm-lora{few}", "vs_peft": f"peft-lora{few}",
        "vs_compressed": f"zweave-compressed{few}",
    }  # fmt: skip
    return [
        outcome.row()
        | workload.labels()
        | {"tok_s": per_second(workload.new_tokens, outcome)}
        | {key: ratio(find(outcomes, name), outcome) for key, name in bases.items()}
        for outcome in outcomes
    ]


def _alone_rows(args: argparse.Namespace, rank: int, fixtures: Fixtures, files: AdapterFiles) -> list[Row]:
    workload = Workload(1, args.prompt, args.new)
    longer = pace(args, warmup=1)
    longer = replace(longer, rounds=_ALONE_ROUNDS * longer.rounds)
    outcomes = _measured(alone_peers(rank), "alone", rank, fixtures, workload, files, longer, [])
    one = find(outcomes, ALONE, adapters=ALONE_BESIDE[0])
    return [
        outcome.row()
        | workload.labels()
        | {"tok_s": per_second(workload.new_tokens, outcome), "vs_one": ratio(outcome, one)}
        for outcome in outcomes
    ]


def _measured(
    peers: Iterable[tuple[str, Peer]],
    work: str,
    rank: int,
    fixtures: Fixtures,
    workload: Workload,
    files: AdapterFiles,
    how: Pace,
    notes: list[str],
) -> Sequence[Outcome]:
    """The outcomes of those that are installed, in turn; a note of each that is not."""
    with ExitStack() as stack:
        providers = []
        for name, peer in peers:
            labels = {"work": work, "rank": peer.rank if peer.adapters else rank, "adapters": peer.adapters}
            try:
                providers.append(peer_provider(name, peer, fixtures, workload, files, stack, **labels))
            except ZweaveError as error:
                notes.append(f"Left out {name}: {error}")
        return measure(providers, how)
