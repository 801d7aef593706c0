"""`zweave expert classifier`: trains a classifier of prompts on an early layer's hidden state."""

import argparse
import json
import time
from pathlib import Path

from ..checkpoint.checkpoint import resolve_model
from ..dispatch.train_classifier import bare_prompt, train_classifier
from ..evaluation.evaluate import standard_error
from ..options.arguments import positive_whole, whole
from ..options.engine_options import add_engine_options, open_engine
from ..options.output_options import add_overwrite_option, check_output
from ..options.task_options import add_data_option, data_folder
from ..tasks import resolve_task, which_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tasks",
        nargs="+",
        metavar="TASK",
        help="one with labels, for instance domains; or several, to tell whose prompt it is",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add_overwrite_option(parser)
    parser.add_argument(
        "--layers",
        type=positive_whole,
        nargs="+",
        default=[1, 2, 3, 4, 6, 8],
        metavar="N",
        help="to choose from by validation (1 2 3 4 6 8)",
    )
    parser.add_argument("--shots", type=positive_whole, default=500, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--samples", type=positive_whole, default=500, metavar="N", help="held out (%(default)s)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the shots (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_data_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_output(args, "--out", args.out)
    tasks, data = [resolve_task(name) for name in args.tasks], data_folder(args)
    task = tasks[0] if len(tasks) == 1 else which_task(tasks)
    test = task.samples("test", data)[: args.samples]
    digest = resolve_model(args.model).digest()
    engine = open_engine(args)
    layers = [layer for layer in args.layers if layer <= engine.model.config.num_layers]
    start = time.perf_counter()
    classifier, shares = train_classifier(engine, task, data, layers, args.shots, args.seed, digest)
    seconds = time.perf_counter() - start
    answers = classifier.classify(engine, [bare_prompt(engine, sample) for sample in test])
    accuracy = sum(task.reward(s, text) > 0 for s, text in zip(test, answers, strict=True)) / len(test)
    classifier.save(args.out)
    figures = {
        "layer": classifier.layer,
        "validation": shares,
        "accuracy": accuracy,
        "stderr": standard_error([accuracy], len(test)),
        "n": len(test),
        "seconds": seconds,
    }
    if args.json:
        print(json.dumps(figures))
        return 0
    for layer, share in shares.items():
        print(f"layer {layer:<3} {share:.3f} of the validation samples")
    print(
        f"{args.out}: layer {classifier.layer}, "
        f"{accuracy:.3f} ± {figures['stderr']:.3f} of {len(test)} held-out samples"
    )
    return 0
