"""Makes the adapters that the benches of LoRA measure."""

import argparse

from zweave.errors import ZweaveError
from zweave.io.progress import Report as Progress
from zweave.io.progress import progress_bar
from zweave.options.task_options import data_folder

from ...harness.report import Column, Report, Row
from .adapters import TrainedAdapter, adapters_dir, check_data, row, trained_adapters

COLUMNS = (
    Column("provider", "adapter"),
    Column("rank", "rank", "d"),
    Column("seed", "seed", "d"),
    Column("steps", "steps", "d"),
    Column("seconds", "s", ".0f"),
    Column("accuracy", "validation accuracy", ".3f"),
)


def run(args: argparse.Namespace) -> Report:
    adapters = trained_adapters(args.ranks, args.seeds, args.steps, args.generated, args.generated_steps)
    check_data(data_folder(args))
    folder = adapters_dir(args.model)
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        rows = [
            _made(adapter, f"{index} of {len(adapters)}: {adapter.name}", args, progress)
            for index, adapter in enumerate(adapters, 1)
        ]
    return Report("lora-adapters", f"Trained LoRA adapters in {folder}", COLUMNS, rows)


def _made(adapter: TrainedAdapter, stage: str, args: argparse.Namespace, progress: Progress) -> Row:
    if record := adapter.record(args.model, args.dtype):
        return row(adapter, record)
    progress(stage, 0, adapter.recipe.steps)
    try:
        record = adapter.train(
            args.model,
            args.dtype,
            data_folder(args),
            lambda step: progress(stage, step.step + 1, adapter.recipe.steps),
        )
    except ZweaveError as error:
        # Of so many one may fail; the next run tries it again.
        return row(adapter, {}) | {"status": "failed", "note": str(error)}
    return row(adapter, record)
