"""`zweave bench`: runs a bench, prints its report and draws its figure."""

import argparse
from importlib import import_module

from zweave.bench.harness.plot import save_plot
from zweave.bench.harness.report import print_report

from .arguments.bench import BENCHES


def run(args: argparse.Namespace) -> int:
    bench = import_module(f"zweave.bench.{BENCHES[args.bench][0]}")
    if args.bench == "gpu":
        return int(bench.run(args))
    report = bench.run(args)
    status = print_report(report, args.json)
    if args.plot is not None:
        save_plot(report, args.plot)
    return status
