"""Trains the experts of `zweave demo`: `python -m zweave.train.demo_experts [TASK ...] --data DIR --out DIR`.

DIR/tasks of the data holds sst2_train.tsv, sst2_test.tsv, TREC.train.all and TREC.test.all; addition needs no
file. A training that was interrupted goes on when the same command is given again.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from zweave.bundled import DEFAULT_MODEL
from zweave.checkpoint import Checkpoint, resolve_model
from zweave.decompose import decompose
from zweave.errors import ZweaveError
from zweave.expert import Expert
from zweave.tokenizer import Tokenizer
from zweave.train.loop import Recipe, accuracy, train_expert
from zweave.train.svf import SvfLinear, adapt
from zweave.train.tasks import TASKS, Sample, Task

RECIPES = {
    "sentiment": Recipe(steps=40),
    "question-type": Recipe(steps=60),
    "addition": Recipe(steps=40, draws=8),
}
VALIDATION = 100


def load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The transformers model of a checkpoint; ZweaveError when transformers is not installed."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ZweaveError("training needs transformers: pip install 'zweave[train]'") from None
    return AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=dtype).eval()


@dataclass(frozen=True, slots=True)
class Trainer:
    """The resident model with its z vectors, which train one expert after the other."""

    name: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    model: nn.Module
    adapted: dict[str, SvfLinear]
    console: Console

    @classmethod
    def open(cls, name: str, dtype: torch.dtype, console: Console) -> "Trainer":
        checkpoint = resolve_model(name)
        model = load_model(checkpoint, dtype)
        adapted = adapt(model, decompose(checkpoint).factors)
        return cls(name, checkpoint, Tokenizer(checkpoint.directory), model, adapted, console)

    def train(self, task: Task, recipe: Recipe, data: Path, out: Path, held_out: int) -> Path:
        """Trains an expert, measures it on held-out samples as it is stored, and writes its file."""
        train, test = task.samples(data)
        validation, train, test = train[:VALIDATION], train[VALIDATION:], test[:held_out]
        start = time.perf_counter()
        self.reset()
        before = self.accuracy("the base model", task, recipe, test)
        # Named after the weights: the state of a training on others must not be taken up.
        state = out / f"{task.name}-{self.checkpoint.digest()[:12]}.state"
        with Progress(console=self.console) as progress:
            bar = progress.add_task(task.name, total=recipe.steps)
            steps = train_expert(self.model, self.adapted, self.tokenizer, task, train, recipe, state=state)
            with (out / f"{task.name}.jsonl").open("a") as log:
                for step in steps:
                    progress.update(bar, completed=step.step + 1)
                    log.write(json.dumps(asdict(step)) + "\n")
                    log.flush()
                    if (step.step + 1) % 20 == 0:
                        self.accuracy(f"step {step.step + 1}, validation", task, recipe, validation)
        self.round_to_half()
        after = self.accuracy("the expert", task, recipe, test)
        record = asdict(recipe) | {
            "task": task.name,
            "model": self.name,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "held_out": len(test),
            "accuracy_before": round(before, 4),
            "accuracy_after": round(after, 4),
            "seconds": round(time.perf_counter() - start),
        }
        path = out / f"{task.name}.safetensors"
        self.expert(task.description, record).save(path, half=True)
        state.unlink(missing_ok=True)
        self.console.print(f"{path}: {before:.3f} -> {after:.3f} on {len(test)} held-out samples")
        return path

    def accuracy(self, what: str, task: Task, recipe: Recipe, samples: list[Sample]) -> float:
        tokens = 1 if task.labels else recipe.max_tokens
        share = accuracy(self.model, self.tokenizer, samples, max_tokens=tokens)
        self.console.print(f"{task.name}: {what} answers {share:.3f} of {len(samples)} rightly")
        return share

    def reset(self) -> None:
        for module in self.adapted.values():
            nn.init.ones_(module.z)

    def round_to_half(self) -> None:
        """Rounds z as a half-precision expert file does."""
        for module in self.adapted.values():
            module.z.data.copy_((module.z.data - 1).half().float() + 1)

    def expert(self, description: str, training: dict[str, Any]) -> Expert:
        return Expert(
            z={name: module.z.detach().clone() for name, module in self.adapted.items()},
            base_digest=self.checkpoint.digest(),
            description=description,
            training=training,
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m zweave.train.demo_experts", description=__doc__)
    data = os.environ.get("ZWEAVE_DATA")
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all when none is given"
    )
    parser.add_argument(
        "--data", type=Path, default=data, help="directory with tasks/ (default: $ZWEAVE_DATA)"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory for the expert files and logs")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or directory (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: %(default)s"
    )
    parser.add_argument("--held-out", type=int, default=500, metavar="N", help="samples of the final figure")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser


def run(args: argparse.Namespace, console: Console) -> None:
    unknown = sorted(set(args.tasks) - set(TASKS))
    if unknown:
        raise ZweaveError(f"unknown task {unknown[0]!r}: choose of {', '.join(TASKS)}")
    if args.held_out < 1:
        raise ZweaveError("--held-out must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer.open(args.model, getattr(torch, args.dtype), console)
    for name in args.tasks or TASKS:
        trainer.train(TASKS[name], RECIPES[name], (args.data or Path()) / "tasks", args.out, args.held_out)


def main() -> int:
    console = Console(stderr=True, highlight=False)
    try:
        run(parser().parse_args(), console)
    except ZweaveError as error:
        console.print(f"error: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from the last saved step")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
