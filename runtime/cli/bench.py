"""`zweave bench`: runs a bench, prints its report and draws its figure."""

import argparse

from zweave.bench import gpu
from zweave.bench.harness.plot import save_plot
from zweave.bench.harness.report import print_report


def run(args: argparse.Namespace) -> int:
    if args.bench is gpu:
        return gpu.run(args)
    report = args.bench.run(args)
    status = print_report(report, args.json)
    if args.plot is not None:
        save_plot(report, args.plot)
    return status
