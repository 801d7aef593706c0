"""What does it cost not to know a prompt's task?

First requests alone: the first pass, which finds the expert, beside the second, for each strategy and each kind of
expert, and the reference's: classify by writing, rebuild the weights, read the prompt again, answer. Then
a stream of prompts of three tasks, arriving as others end, against the same stream with the right experts named.
"""

import argparse

from zweave.errors import ZweaveError
from zweave.io.progress import progress_bar
from zweave.options.arguments import positive_whole
from zweave.options.task_options import add_data_option, data_folder

from ...harness.options import add_model, add_pace, chosen, numbers, pace
from ...harness.report import Column, Report, Row
from ..fixtures import Fixtures
from .alone import Alone
from .paper_procedure import PaperProcedure
from .stream import Stream

WORKLOADS = ("alone", "stream")
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="(%(default)s)")
    parser.add_argument(
        "--reference-dtype",
        choices=["bfloat16", "float32"],
        help="the faster one where the processor does not multiply bfloat16 (that of --dtype)",
    )
    parser.add_argument(
        "--prompts", default="64,512,2048", metavar="N,...", help="tokens, of requests alone (%(default)s)"
    )
    for name, value, what in (
        ("new", 64, "tokens of their answers"),
        ("guess", 4, "tokens by which the reference classifies"),
        ("layer", 2, "that the hidden strategy reads"),
        ("samples", 30, "of each task in the stream"),
        ("in-flight", 16, "requests of the stream at once"),
    ):
        parser.add_argument(
            f"--{name}", type=positive_whole, default=value, metavar="N", help=f"{what} (%(default)s)"
        )
    parser.add_argument(
        "--stream-new",
        type=positive_whole,
        metavar="N",
        help="tokens of the stream's answers (the tasks' own)",
    )
    add_data_option(parser)
    add_pace(parser, rounds=5, seconds=25)


def run(args: argparse.Namespace) -> Report:
    lengths, data = numbers(args.prompts, "--prompts"), data_folder(args)
    workloads = chosen(args.workloads, WORKLOADS, "--workloads")
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
