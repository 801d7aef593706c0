"""What does it cost not to know a prompt's task?"""

import argparse

from zweave.errors import ZweaveError
from zweave.io.progress import progress_bar
from zweave.options.task_options import data_folder

from ...harness.options import pace
from ...harness.report import Column, Report, Row
from ..fixtures import Fixtures
from .alone import Alone
from .paper_procedure import PaperProcedure
from .stream import Stream

COLUMNS = (
    Column("workload", "workload"),
    Column("prompt_tokens", "prompt", ".0f"),
    Column("reuse", "experts"),
    Column("provider", "strategy"),
    Column("seconds", "s", ".3f"),
    Column("first_pass_share", "first/second pass", ".3f"),
    Column("oracle_ratio", "x oracle", ".3f"),
    Column("vs_reference", "/ reference's second", ".3f"),
    Column("prompt_tokens_recomputed", "read twice", ".0f"),
    Column("accuracy", "accuracy", ".3f"),
    Column("oracle_accuracy", "oracle's", ".3f"),
    Column("error", "error", ".4f"),
)


def run(args: argparse.Namespace) -> Report:
    lengths, data = args.prompts, data_folder(args)
    workloads = args.workloads
    notes: list[str] = []
    stream = None
    if "stream" in workloads and data is None:
        notes.append("Left out the stream: give the directory of its tasks' files, --data or $ZWEAVE_DATA")
    elif "stream" in workloads:
        stream = Stream(data, args.samples, args.in_flight, args.stream_new)
    fixtures = Fixtures(args.model, args.dtype)
    if args.layer > fixtures.config.num_layers:
        raise ZweaveError(f"--layer: the model has {fixtures.config.num_layers} layers")
    engine = fixtures.new_engine(prefix_cache=True)
    rows: list[Row] = []
    with progress_bar() as progress:
        if "alone" in workloads:
            alone = Alone(fixtures, engine, args.layer, args.new)
            for length in lengths:
                alone.check(length)
            reference = PaperProcedure(fixtures, args.reference_dtype or args.dtype, args.guess)
            for length in lengths:
                progress(f"prompts of {length} tokens", 0, 0)
                found = alone.rows(length, reference, pace(args, warmup=0))
                rows += [{"workload": "alone"} | row for row in found]
        if stream is not None:
            progress("the stream", 0, 0)
            found = stream.rows(engine, args.layer, pace(args, warmup=0))
            rows += [{"workload": "stream"} | row for row in found]
    title = f"Two passes, answers of {args.new} tokens alone, {args.dtype}, medians of runs in turn"
    return Report(
        "two-pass", title, COLUMNS, rows, sections=("workload", "prompt_tokens", "reuse"), notes=notes
    )
