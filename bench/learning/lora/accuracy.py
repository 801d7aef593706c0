"""What are trained LoRA adapters worth in each way of serving them?"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial

from zweave.errors import ZweaveError
from zweave.evaluation.evaluate import share_right, standard_error
from zweave.io.progress import progress_bar
from zweave.options.task_options import data_folder

from ...harness.report import Column, Report, Row
from .adapters import AdapterFolder, TrainedAdapter, is_generated, trained_adapters
from .kept_answers import KeptAnswers
from .ways import WAYS, Asked

REFERENCE = "peft"
_NO_FIGURES = ("provider", "group", "kind", "status", "n", "stderr")


def run(args: argparse.Namespace) -> Report:
    folder = AdapterFolder.of(args.model, args.dtype)
    wanted = trained_adapters(args.ranks, args.seeds, args.generated)
    there = [adapter for adapter in wanted if folder.record(adapter)]
    if not there:
        raise ZweaveError(
            f"{folder.path} holds none of these adapters: make them with zweave bench lora-adapters"
        )
    asked = [_asked(folder, adapter, args) for adapter in there]
    kept = KeptAnswers(folder.path, asked, args.dtype)
    with progress_bar() as progress:
        answers = {way: kept.get(way, partial(WAYS[way], args, asked, progress)) for way in args.ways}
    rows = [
        _row(one, {way: found[index] for way, found in answers.items()}) for index, one in enumerate(asked)
    ]
    columns = (
        Column("provider", "adapter"),
        Column("n", "n", "d"),
        *(Column(way, way, ".3f") for way in args.ways),
        *(Column(f"{way}_same", f"{way} as {REFERENCE}", ".3f") for way in args.ways if way != REFERENCE),
        Column("stderr", "± stderr", ".3f"),
    )
    title = f"{len(there)} of {len(wanted)} trained LoRA adapters: accuracy on test samples, {args.dtype}"
    return Report("lora-accuracy", title, columns, [*rows, *means(rows)], sections=("kind",), markdown=True)


def _asked(folder: AdapterFolder, adapter: TrainedAdapter, args: argparse.Namespace) -> Asked:
    count = args.generated_samples if is_generated(adapter) else args.samples
    samples = adapter.task.samples("test", data_folder(args))[:count]
    return Asked(adapter, folder.directory(adapter), samples)


def _row(asked: Asked, texts: Mapping[str, Sequence[str]]) -> Row:
    """The share of right answers in each way, and of those that are word for word the reference's."""
    task, samples = asked.adapter.task, asked.samples
    shares = {way: share_right(task, samples, found) for way, found in texts.items()}
    row: Row = {
        "provider": asked.adapter.name,
        "kind": "adapter",
        "group": "generated" if is_generated(asked.adapter) else f"{task.name}-r{asked.adapter.recipe.rank}",
        "status": "ok",
        "n": len(samples),
        "stderr": max(standard_error([share], len(samples)) for share in shares.values()),
    }
    same = {
        f"{way}_same": statistics.fmean(a == b for a, b in zip(found, texts[REFERENCE], strict=True))
        for way, found in texts.items()
        if REFERENCE in texts and way != REFERENCE
    }
    return row | shares | same


def means(rows: Sequence[Row]) -> list[Row]:
    """A row for each group: means over its adapters."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    found = []
    for group, some in groups.items():
        found.append(
            {"provider": f"mean of {len(some)} {group}", "kind": "mean", "group": group, "status": "ok"}
            | {key: _mean(some, key) for key in some[0] if key not in _NO_FIGURES}
        )
    return found


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.fmean(value for row in rows if isinstance(value := row[key], int | float))
