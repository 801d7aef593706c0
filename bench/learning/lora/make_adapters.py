"""Makes the adapters that the benches of LoRA measure."""

import argparse

from zweave.errors import ZweaveError
from zweave.io.progress import Report as Progress
from zweave.io.progress import progress_bar
from zweave.options.task_options import data_folder

from ...harness.report import Column, Report, Row
from .adapters import AdapterFolder, TrainedAdapter, check_data, row, trained_adapters

COLUMNS = (
    Column("provider", "adapter"),
    Column("rank", "rank", "d"),
    Column("seed", "seed", "d"),
    Column("steps", "steps", "d"),
    Column("seconds", "s", ".0f"),
    Column("accuracy", "validation accuracy", ".3f"),
)


def run(args: argparse.Namespace) -> Report:
    adapters = trained_adapters(args.ranks, args.seeds, args.generated, args.steps, args.generated_steps)
    check_data(data_folder(args))
    folder = AdapterFolder.of(args.model, args.dtype)
    folder.path.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        rows = [
            _made(folder, adapter, f"{index} of {len(adapters)}: {adapter.name}", args, progress)
            for index, adapter in enumerate(adapters, 1)
        ]
    return Report("lora-adapters", f"Trained LoRA adapters in {folder.path}", COLUMNS, rows)


def _made(
    folder: AdapterFolder, adapter: TrainedAdapter, stage: str, args: argparse.Namespace, progress: Progress
) -> Row:
    if record := folder.record(adapter):
        return row(adapter, record)
    steps = adapter.recipe.steps
    progress(stage, 0, steps)
    try:
        record = folder.train(adapter, data_folder(args), lambda step: progress(stage, step.step + 1, steps))
    except ZweaveError as error:
        # Of so many one may fail; the next run tries it again.
        return row(adapter, {}) | {"status": "failed", "note": str(error)}
    return row(adapter, record)
