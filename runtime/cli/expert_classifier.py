"""`zweave expert classifier`: trains a classifier of prompts on an early layer's hidden state."""

import argparse
import json
import time

from ..checkpoint.checkpoint import resolve_model
from ..dispatch.early_classifier import OTHER
from ..dispatch.train_classifier import bare_prompt, train_classifier
from ..errors import ZweaveError
from ..evaluation.evaluate import standard_error
from ..options.engine_options import open_engine
from ..options.task_options import data_folder
from ..tasks import resolve_task, which_task


def run(args: argparse.Namespace) -> int:
    tasks, data = [resolve_task(name) for name in args.tasks], data_folder(args)
    task = tasks[0] if len(tasks) == 1 else which_task(tasks)
    other = args.other if args.other is not None else len(tasks) > 1
    if args.unseen and not other:
        raise ZweaveError("--unseen asks what is of none of the labels: give --other too")
    unseen = {
        found.name: found.samples("test", data)[: args.samples] for found in map(resolve_task, args.unseen)
    }
    test = task.samples("test", data)[: args.samples]
    digest = resolve_model(args.model).digest()
    engine = open_engine(args)
    layers = [layer for layer in args.layers if layer <= engine.model.config.num_layers]
    start = time.perf_counter()
    classifier, shares = train_classifier(engine, task, data, layers, args.shots, args.seed, digest, other)
    seconds = time.perf_counter() - start
    answers = classifier.classify(engine, [bare_prompt(engine, sample) for sample in test])
    accuracy = sum(task.reward(s, text) > 0 for s, text in zip(test, answers, strict=True)) / len(test)
    rejected = {
        name: classifier.classify(engine, [bare_prompt(engine, s) for s in samples]).count(OTHER)
        / len(samples)
        for name, samples in unseen.items()
    }
    classifier.save(args.out)
    figures = {
        "layer": classifier.layer,
        "validation": shares,
        "accuracy": accuracy,
        "stderr": standard_error([accuracy], len(test)),
        "n": len(test),
        "unseen": rejected,
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
    for name, share in rejected.items():
        print(f"{name}: {share:.3f} of {len(unseen[name])} prompts are of none")
    return 0
