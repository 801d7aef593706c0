"""Can a description be read: what it asks for, and which word means yes?"""

import argparse
from dataclasses import asdict

import torch

from zweave.describe.encoders import open_encoder
from zweave.describe.generator import GeneratorConfig
from zweave.describe.tasks import chosen_tasks, hidden_tasks, split_levels
from zweave.describe.train.reading import DescriptionSet, ReadingRecipe, ReadingTraining
from zweave.io.progress import Report as Progress
from zweave.io.progress import progress_bar

from ...harness.report import Column, Report, Row

COLUMNS = (
    Column("provider", "encoder"),
    Column("wordings", "wordings"),
    Column("attribute", "attribute", ".3f"),
    Column("pair", "pair of words", ".3f"),
    Column("order", "which means yes", ".3f"),
)


def run(args: argparse.Namespace) -> Report:
    recipe = ReadingRecipe(args.steps, args.descriptions, seed=args.seed)
    with progress_bar() as progress:
        rows = [row for name in args.encoders for row in _rows(name, recipe, args, progress)]
    return Report("description-reading", "What is read in descriptions", COLUMNS, rows, markdown=True)


def _rows(name: str, recipe: ReadingRecipe, args: argparse.Namespace, progress: Progress) -> list[Row]:
    encoder = open_encoder(name, args.model)
    seen = split_levels(chosen_tasks(hidden_tasks())).seen
    attributes = sorted({task.attribute for task in seen})

    def drawn(kind: str, count: int, held_out: bool = False) -> DescriptionSet:
        return DescriptionSet.drawn(seen, attributes, encoder, count, f"{kind} {args.seed}", held_out)

    told = drawn("learnt", recipe.descriptions)
    torch.manual_seed(args.seed)
    reader = GeneratorConfig(encoder.width).reader()
    training = ReadingTraining(reader, told, len(attributes), recipe)
    while not training.is_done:
        loss = training.advance()
        progress(f"{name}, loss {loss:.3f}", training.step, recipe.steps)
    kinds = {"new": drawn("new", args.held_out), "held out": drawn("held out", args.held_out, held_out=True)}
    return [
        {"provider": name, "wordings": kind, **asdict(training.accuracy(texts))}
        for kind, texts in kinds.items()
    ]
