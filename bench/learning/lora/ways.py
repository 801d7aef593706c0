"""Ways of serving trained LoRA adapters: each answers the test samples of all of them."""

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from zweave.adapters.component_pool import pages_of_rank
from zweave.adapters.compression.compress import compress
from zweave.adapters.compression.compressed_file import save_compressed
from zweave.adapters.peft_directory import read_peft
from zweave.checkpoint import resolve_model
from zweave.decomposition import decompose
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.experts.projection import project
from zweave.io.progress import Report as Progress
from zweave.kernels import PAGE
from zweave.request import Request
from zweave.tasks import Sample, answer_limit, prompt_ids

from ...harness.machine import clean_commit
from .adapters import TrainedAdapter


@dataclass(frozen=True, slots=True)
class Asked:
    """An adapter, the directory that it lies in, and what it is asked."""

    adapter: TrainedAdapter
    directory: Path
    samples: Sequence[Sample]

    @property
    def name(self) -> str:
        return self.adapter.name


# The answered text of each sample of each adapter.
Answers: TypeAlias = list[list[str]]
Way: TypeAlias = Callable[[argparse.Namespace, Sequence[Asked], Progress], Answers]


def base(args: argparse.Namespace, asked: Sequence[Asked], progress: Progress) -> Answers:
    """Without any adapter."""
    return answer_together(Engine(args.model, dtype=args.dtype), asked, {}, progress, "base")


def peft(args: argparse.Namespace, asked: Sequence[Asked], progress: Progress) -> Answers:
    """One adapter after the other, in PEFT's own model."""
    from zweave.evaluation.lora import LoraModel

    answers = []
    for index, one in enumerate(asked):
        progress("peft", index, len(asked))
        # A model for each: all adapters in one would take more memory than ours, and each load longer than the last.
        method = LoraModel(args.model, getattr(torch, args.dtype)).method(one.name, one.directory)
        answers.append(method.answers(one.adapter.task, one.samples))
    return answers


def exact(args: argparse.Namespace, asked: Sequence[Asked], progress: Progress) -> Answers:
    """All adapters as they are, in one batch of ours."""
    components = PAGE * sum(pages_of_rank(one.adapter.recipe.rank) for one in asked)
    engine = Engine(args.model, dtype=args.dtype, slots=len(asked), lora_components=components)
    for one in asked:
        engine.load_expert(one.name, one.directory)
    return answer_together(engine, asked, {one.name: one.name for one in asked}, progress, "exact")


def compressed(rank: int) -> Way:
    """All adapters over one basis of K components, in one batch of ours; the file is kept beside the adapters."""

    def way(args: argparse.Namespace, asked: Sequence[Asked], progress: Progress) -> Answers:
        engine = Engine(
            args.model, dtype=args.dtype, slots=len(asked), lora_components=PAGE * pages_of_rank(rank)
        )
        engine.load_adapters(_compressed_file(args, asked, rank, progress))
        return answer_together(
            engine, asked, {one.name: one.name for one in asked}, progress, f"compressed-{rank}"
        )

    return way


def _compressed_file(args: argparse.Namespace, asked: Sequence[Asked], rank: int, progress: Progress) -> Path:
    loras = {one.name: read_peft(one.directory) for one in asked}
    known = clean_commit()
    content = " ".join([str(known), *(f"{name} {lora.digest}" for name, lora in loras.items())])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    file = asked[0].directory.parent / f"compressed-{rank}-{key}.safetensors"
    if known is None or not file.is_file():
        checkpoint = resolve_model(args.model)
        digest = checkpoint.digest()
        found = compress(loras, checkpoint.adapted_shapes(), rank=rank, base_digest=digest, report=progress)
        save_compressed(found, file)
    return file


def projected(args: argparse.Namespace, asked: Sequence[Asked], progress: Progress) -> Answers:
    """The experts that come closest to the adapters, in one batch of ours."""
    engine = Engine(args.model, dtype=args.dtype, slots=len(asked))
    decomposition = decompose(resolve_model(args.model))
    for index, one in enumerate(asked):
        progress("projecting the adapters", index, len(asked))
        engine.load_expert(one.name, project(read_peft(one.directory), decomposition)[0])
    return answer_together(engine, asked, {one.name: one.name for one in asked}, progress, "projected")


def answer_together(
    engine: Engine, asked: Sequence[Asked], experts: Mapping[str, str], progress: Progress, stage: str
) -> Answers:
    """The samples of all adapters as one batch, neighbours under different adapters.

    experts: what the engine calls each adapter; the base model answers for one without.
    """
    requests: list[Request] = []
    places: list[tuple[int, int]] = []
    for row in range(max(len(one.samples) for one in asked)):
        for column, one in enumerate(asked):
            if row < len(one.samples):
                places.append((column, row))
                requests.append(_request(engine, one, row, experts.get(one.name)))
    answers = [[""] * len(one.samples) for one in asked]
    for done, (index, result) in enumerate(engine.run(requests)):
        progress(stage, done, len(requests))
        column, row = places[index]
        if result.error is not None:
            raise ZweaveError(f"{asked[column].name} cannot answer: {result.error}")
        answers[column][row] = result.text
    return answers


def _request(engine: Engine, asked: Asked, row: int, expert: str | None) -> Request:
    task = asked.adapter.task
    return Request(
        prompt_ids(engine.tokenizer, asked.samples[row].prompt),
        expert=expert,
        max_tokens=answer_limit(engine.tokenizer, task),
        stop=task.stop,
    )


WAYS: dict[str, Way] = {
    "base": base,
    "peft": peft,
    "exact": exact,
    **{f"compressed-{rank}": compressed(rank) for rank in (64, 128, 256)},
    "projected": projected,
}
