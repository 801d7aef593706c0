"""Do experts look alike where their descriptions do?"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from zweave.adapters.peft_directory import read_peft
from zweave.checkpoint import resolve_model
from zweave.decomposition import decompose
from zweave.describe.encoders import BaseStates, Encoder, MiniLm
from zweave.errors import ZweaveError
from zweave.io.progress import progress_bar
from zweave.text import Tokenizer
from zweave.train.run import load_model

from ...harness.report import Column, Report, Row
from ..lora.adapters import AdapterFolder, TrainedAdapter, is_generated, trained_adapters
from .lora_products import delta_cosines, product_cosines, projected_deltas
from .mantel import mantel

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


def run(args: argparse.Namespace) -> Report:
    folder = AdapterFolder.of(args.model, args.dtype)
    wanted = [a for a in trained_adapters([16], [0], args.generated) if is_generated(a)]
    adapters = [adapter for adapter in wanted if folder.record(adapter)]
    if len(adapters) < 12:
        raise ZweaveError(
            f"{len(adapters)} LoRAs of generated tasks are there, 12 are needed: run zweave bench lora-adapters"
        )
    described = [adapter.task.description for adapter in adapters]
    encoders = _encoders(args.model)
    with progress_bar() as progress:
        loras = [read_peft(folder.directory(adapter)) for adapter in adapters]
        cosines = {
            "LoRA, B A": product_cosines(loras, progress),
            "projected, sigma (z - 1)": delta_cosines(
                projected_deltas(loras, decompose(resolve_model(args.model)), progress)
            ),
        }
    rows = [
        _row(name, cosine, encoder, described, adapters)
        for name, cosine in cosines.items()
        for encoder in encoders
    ]
    title = "Likeness of descriptions and of what was trained for them"
    return Report("description-similarity", title, COLUMNS, rows, markdown=True)


def _encoders(model: str) -> list[Encoder]:
    checkpoint = resolve_model(model)
    base = load_model(checkpoint, torch.float32)
    return [MiniLm(), BaseStates(base, Tokenizer(checkpoint.directory))]


def _row(
    name: str, cosine: Tensor, encoder: Encoder, described: Sequence[str], adapters: Sequence[TrainedAdapter]
) -> Row:
    vectors = encoder.encode(described)
    found = mantel((vectors @ vectors.T).double().numpy(), cosine.numpy())
    keys = [_key(adapter) for adapter in adapters]
    return {
        "provider": name,
        "encoder": encoder.name,
        "experts": len(adapters),
        "pearson": found.pearson,
        "spearman": found.spearman,
        "p": found.p,
        "same_attribute": _mean(cosine, keys, lambda a, b: a[:2] == b[:2]),
        "same_words": _mean(cosine, keys, lambda a, b: a[:2] != b[:2] and a[2] == b[2]),
        "same_texts": _mean(cosine, keys, lambda a, b: a[0] == b[0] and a[1] != b[1] and a[2] != b[2]),
        "nothing": _mean(cosine, keys, lambda a, b: a[0] != b[0] and a[1] != b[1] and a[2] != b[2]),
    }


Key = tuple[str, str, frozenset[str]]


def _key(adapter: TrainedAdapter) -> Key:
    """Texts, attribute and label words of a generated task; which word means yes does not count."""
    source, *attribute, yes, no = adapter.task.name.split("-")
    return source, "-".join(attribute), frozenset((yes, no))


def _mean(cosine: Tensor, keys: Sequence[Key], wanted: Callable[[Key, Key], bool]) -> float | None:
    found = [cosine[i, j].item() for i, a in enumerate(keys) for j, b in enumerate(keys[:i]) if wanted(a, b)]
    return float(np.mean(found)) if found else None
