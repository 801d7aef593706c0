"""Do experts look alike where their descriptions do?"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from zweave.adapters.peft_directory import read_peft
from zweave.checkpoint import resolve_model
from zweave.decomposition import decompose
from zweave.describe.encoders import Encoder, open_encoder
from zweave.describe.tasks import hidden_tasks
from zweave.describe.trained_experts import TrainedExperts
from zweave.errors import ZweaveError
from zweave.io.progress import Report as Progress
from zweave.io.progress import progress_bar

from ...harness.report import Column, Report, Row
from ..lora.adapters import AdapterFolder, TrainedAdapter, is_generated, trained_adapters
from .lora_products import delta_cosines, product_cosines, projected_deltas
from .mantel import mantel

# Of experts; the pairs of fewer say nothing.
LEAST = 12
COLUMNS = (
    Column("provider", "cosine of"),
    Column("encoder", "encoder"),
    Column("experts", "experts", "d"),
    Column("pearson", "Pearson", ".3f"),
    Column("spearman", "Spearman", ".3f"),
    Column("p", "p, permuted", ".4f"),
    Column("same_attribute", "same attribute", ".3f"),
    Column("same_words", "same words", ".3f"),
    Column("same_texts", "same texts alone", ".3f"),
    Column("nothing", "nothing the same", ".3f"),
)


# Texts, attribute and label words of a task; which word means yes does not count.
Key: TypeAlias = tuple[str, str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Subjects:
    """What was trained: descriptions and keys of the tasks, and one or more cosines [n, n] of what was learnt."""

    described: Sequence[str]
    keys: Sequence[Key]
    cosines: Mapping[str, Tensor]


def run(args: argparse.Namespace) -> Report:
    with progress_bar() as progress:
        subjects = _experts(args) if args.experts else _loras(args, progress)
    rows = [
        _row(name, cosine, encoder, subjects)
        for encoder in (open_encoder(kind, args.model) for kind in ("minilm", "base"))
        for name, cosine in subjects.cosines.items()
    ]
    title = "Likeness of descriptions and of what was trained for them"
    return Report("description-similarity", title, COLUMNS, rows, markdown=True)


def _loras(args: argparse.Namespace, progress: Progress) -> Subjects:
    folder = AdapterFolder.of(args.model, args.dtype)
    wanted = [a for a in trained_adapters([16], [0], args.generated) if is_generated(a)]
    adapters = [adapter for adapter in wanted if folder.record(adapter)]
    if len(adapters) < LEAST:
        raise ZweaveError(
            f"{len(adapters)} LoRAs of generated tasks are there, {LEAST} are needed: run zweave bench lora-adapters"
        )
    loras = [read_peft(folder.directory(adapter)) for adapter in adapters]
    deltas = projected_deltas(loras, decompose(resolve_model(args.model)), progress)
    return Subjects(
        [adapter.task.description for adapter in adapters],
        [_lora_key(adapter) for adapter in adapters],
        {"LoRA, B A": product_cosines(loras, progress), "projected, sigma (z - 1)": delta_cosines(deltas)},
    )


def _lora_key(adapter: TrainedAdapter) -> Key:
    source, *attribute, yes, no = adapter.task.name.split("-")
    return source, "-".join(attribute), frozenset((yes, no))


def _experts(args: argparse.Namespace) -> Subjects:
    """Of a folder that `zweave bench hidden-tasks` wrote."""
    hidden = {task.name: task for task in hidden_tasks()}
    checkpoint = resolve_model(args.model)
    trained = TrainedExperts.load(args.experts, checkpoint.digest()).experts
    tasks = [hidden[name] for name in trained if name in hidden]
    if len(tasks) < LEAST:
        raise ZweaveError(
            f"{args.experts} holds {len(tasks)} experts of hidden tasks, {LEAST} are needed: run zweave bench "
            "hidden-tasks"
        )
    experts = [trained[task.name] for task in tasks]
    decomposition = decompose(checkpoint)
    sigma = {name: decomposition.sigma(name) for name in decomposition.names}
    # An expert that begins at a higher layer leaves those below it as they are.
    deltas = [
        torch.cat([part * (expert.z.get(name, torch.ones(())) - 1) for name, part in sigma.items()])
        for expert in experts
    ]
    keys = [(" ".join(task.sources), task.attribute, frozenset(task.labels)) for task in tasks]
    described = [expert.description for expert in experts]
    return Subjects(described, keys, {"expert, sigma (z - 1)": delta_cosines(torch.stack(deltas))})


def _row(name: str, cosine: Tensor, encoder: Encoder, subjects: Subjects) -> Row:
    vectors = encoder.encode(subjects.described).mean()
    found = mantel((vectors @ vectors.T).double().numpy(), cosine.numpy())

    def mean(wanted: Callable[[Key, Key], bool]) -> float | None:
        return _mean(cosine, subjects.keys, wanted)

    return {
        "provider": name,
        "encoder": encoder.name,
        "experts": len(subjects.keys),
        "pearson": found.pearson,
        "spearman": found.spearman,
        "p": found.p,
        "same_attribute": mean(lambda a, b: a[:2] == b[:2]),
        "same_words": mean(lambda a, b: a[:2] != b[:2] and a[2] == b[2]),
        "same_texts": mean(lambda a, b: a[0] == b[0] and a[1] != b[1] and a[2] != b[2]),
        "nothing": mean(lambda a, b: a[0] != b[0] and a[1] != b[1] and a[2] != b[2]),
    }


def _mean(cosine: Tensor, keys: Sequence[Key], wanted: Callable[[Key, Key], bool]) -> float | None:
    found = [cosine[i, j].item() for i, a in enumerate(keys) for j, b in enumerate(keys[:i]) if wanted(a, b)]
    return float(np.mean(found)) if found else None
