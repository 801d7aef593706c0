"""`zweave bench`: one question a bench, all providers in one run, their output checked first.

Every bench prints a table and ends with one line of JSON (docs/bench.md). It exits with 1 if the output of a
provider is wrong; such a provider gets no times.
"""

import argparse
from pathlib import Path
from types import ModuleType

from zweave.bench import gpu
from zweave.bench.harness.plot import save_plot
from zweave.bench.harness.report import print_report
from zweave.bench.kernels import gpu_linear, linear, mix
from zweave.bench.learning import few_shot, train, transfer
from zweave.bench.serving import engine, experts, prefix_tree, step
from zweave.bench.serving.peers import peers
from zweave.bench.serving.two_pass import two_pass

from ..options.output_options import add_overwrite_option, check_output
from .parser import add_command

BENCHES = {
    "linear": linear,
    "mix": mix,
    "step": step,
    "engine": engine,
    "peers": peers,
    "experts": experts,
    "prefix-tree": prefix_tree,
    "train": train,
    "few-shot": few_shot,
    "transfer": transfer,
    "two-pass": two_pass,
    "gpu-linear": gpu_linear,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(title="benches", metavar="BENCH", required=True)
    for name, bench in BENCHES.items():
        part = add_command(benches, name, _first_line(bench), bench)
        part.add_argument("--json", action="store_true", help="print the line of JSON alone")
        part.add_argument("--plot", metavar="FILE", type=Path, help="write a figure, PNG")
        add_overwrite_option(part)
        part.set_defaults(run=run, bench=bench)
    add_command(benches, "gpu", _first_line(gpu), gpu).set_defaults(run=gpu.run)


def _first_line(bench: ModuleType) -> str:
    return (bench.__doc__ or "").partition("\n")[0]


def run(args: argparse.Namespace) -> int:
    if args.plot is not None:
        check_output(args, "--plot", args.plot)
    report = args.bench.run(args)
    status = print_report(report, args.json)
    if args.plot is not None:
        save_plot(report, args.plot)
    return status
