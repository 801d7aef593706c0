"""What does it cost to serve many LoRA adapters at once, here and elsewhere?"""

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from zweave.errors import ZweaveError

from ...harness.harness import Outcome, Pace, find, measure, per_second, ratio
from ...harness.options import pace
from ...harness.report import Column, Report, Row
from ..fixtures import Fixtures
from ..peers.peer import AdapterFiles, Peer, peer_provider
from ..workload import Workload
from .loading import loading_rows
from .lora_peers import ALONE, ALONE_BESIDE, alone_peers, batch_peers, compressed_peers

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
    bench = _Bench(args, Fixtures(args.model, args.dtype))
    config = bench.fixtures.config
    if args.prompt + args.new > config.max_position:
        raise ZweaveError(f"the model takes {config.max_position} tokens: lower --prompt or --new")
    rows: list[Row] = []
    for rank in args.ranks:
        with tempfile.TemporaryDirectory(prefix="zweave-") as folder:
            rows += bench.rows_of_rank(rank, Path(folder))
    if "compressed" in args.parts:
        with tempfile.TemporaryDirectory(prefix="zweave-") as folder:
            rows += bench.batch_rows(
                "compressed", args.basis, compressed_peers(args.basis, args.adapters), Path(folder)
            )
    work = f"{args.requests} requests of {args.prompt} prompt and {args.new} new tokens"
    title = f"LoRA adapters: {work}, {args.dtype}, medians of turns"
    notes = list(dict.fromkeys(bench.notes))
    return Report("lora", title, COLUMNS, rows, sections=("rank", "work"), notes=notes)


@dataclass(frozen=True, slots=True)
class _Bench:
    """The parts of the bench, each with rows of its own.

    notes: of those that are not installed.
    """

    args: argparse.Namespace
    fixtures: Fixtures
    notes: list[str] = field(default_factory=list)

    def rows_of_rank(self, rank: int, folder: Path) -> list[Row]:
        """folder: of the adapters' files."""
        args = self.args
        peers = batch_peers(args.parts, rank, args.adapters, args.peer_adapters, args.requests)
        rows = self.batch_rows("batch", rank, peers, folder)
        if "alone" in args.parts:
            rows += self._alone_rows(rank, folder)
        if "loading" in args.parts:
            rows += loading_rows(self.fixtures, self._workload(), rank, args.rounds, folder)
        return rows

    def batch_rows(self, work: str, rank: int, peers: Iterable[tuple[str, Peer]], folder: Path) -> list[Row]:
        """All requests, answered in turn by all who are installed."""
        workload = self._workload()
        outcomes = self._measured(work, rank, peers, workload, pace(self.args, warmup=0), folder)
        few = self.args.peer_adapters[0]
        bases = {
            "vs_base": "zweave", "vs_vllm": "vllm", "vs_vllm_lora": f"vllm-lora{few}",
            "vs_peft": f"peft-lora{few}", "vs_compressed": f"zweave-compressed{few}",
        }  # fmt: skip
        return [
            _row(outcome, workload)
            | {key: ratio(find(outcomes, name), outcome) for key, name in bases.items()}
            for outcome in outcomes
        ]

    def _alone_rows(self, rank: int, folder: Path) -> list[Row]:
        workload = Workload(1, self.args.prompt, self.args.new)
        longer = pace(self.args, warmup=1)
        longer = replace(longer, rounds=_ALONE_ROUNDS * longer.rounds)
        outcomes = self._measured("alone", rank, alone_peers(rank), workload, longer, folder)
        one = find(outcomes, ALONE, adapters=ALONE_BESIDE[0])
        return [_row(outcome, workload) | {"vs_one": ratio(outcome, one)} for outcome in outcomes]

    def _workload(self) -> Workload:
        return Workload(self.args.requests, self.args.prompt, self.args.new)

    def _measured(
        self,
        work: str,
        rank: int,
        peers: Iterable[tuple[str, Peer]],
        workload: Workload,
        how: Pace,
        folder: Path,
    ) -> Sequence[Outcome]:
        """The outcomes of those that are installed; a note of each that is not."""
        files, providers = AdapterFiles(folder, self.fixtures), []
        with ExitStack() as stack:
            for name, peer in peers:
                labels = {"work": work, "rank": rank, "adapters": peer.adapters}
                try:
                    providers.append(
                        peer_provider(name, peer, self.fixtures, workload, files, stack, **labels)
                    )
                except ZweaveError as error:
                    self.notes.append(f"Left out {name}: {error}")
            return measure(providers, how)


def _row(outcome: Outcome, workload: Workload) -> Row:
    return outcome.row() | workload.labels() | {"tok_s": per_second(workload.new_tokens, outcome)}
