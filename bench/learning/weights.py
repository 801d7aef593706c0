"""What do the forms in which weights can stay cost: divergence, perplexity and accuracy?"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.engine import Engine
from zweave.evaluation import ExpertMethod, evaluate
from zweave.io.progress import Report as Progress
from zweave.io.progress import progress_bar
from zweave.options.task_options import data_folder
from zweave.quantization.calibration import SHIPPED, read_chunks, read_tokens
from zweave.quantization.divergence import divergence
from zweave.tasks import Sample, Task, resolve_task
from zweave.text.tokenizer import Tokenizer

from ..harness.report import Column, Report, Row

BASE = "base"
REFERENCE = ("float32", "auto")


@dataclass(slots=True)
class Comparison:
    """What has been added up over the tokens of texts.

    divergence: of KL(reference || form), nats.
    same: tokens whose likeliest successor is the reference's.
    loss: of -log p of the tokens that follow, `targets` of them, nats.
    """

    divergence: float = 0.0
    same: int = 0
    tokens: int = 0
    loss: float = 0.0
    targets: int = 0

    def add(self, found: Tensor, exact: Tensor, token_ids: Sequence[int]) -> None:
        """found, exact: log-probabilities [tokens, vocabulary] of the form and of the reference."""
        self.divergence += divergence(exact, found)
        self.same += int((found.argmax(-1) == exact.argmax(-1)).sum())
        self.tokens += len(token_ids)
        following = torch.tensor(token_ids[1:], dtype=torch.int64)
        self.loss -= float(found[:-1].gather(1, following[:, None]).sum(dtype=torch.float64))
        self.targets += len(following)

    def row(self, choice: str) -> Row:
        row: Row = {
            f"kl_{choice}": self.divergence / self.tokens,
            f"same_{choice}": self.same / self.tokens,
        }
        return row | ({"perplexity": math.exp(self.loss / self.targets)} if choice == BASE else {})


def run(args: argparse.Namespace) -> Report:
    tasks = [resolve_task(name) for name in args.experts] if args.samples else []
    # Read before a model loads, so that a missing file is an error at once.
    samples = [task.samples("test", data_folder(args))[: args.samples] for task in tasks]
    forms = [(dtype, form) for dtype in args.dtypes for form in args.forms]
    loaded = list(dict.fromkeys([*([REFERENCE] if args.tokens else []), *forms]))
    engines = {form: _engine(args, *form) for form in loaded}
    rows: dict[tuple[str, str], Row] = {
        form: {"provider": " ".join(form), "dtype": form[0], "weights": form[1], "status": "ok"}
        for form in loaded
    }
    with progress_bar() as progress:
        if args.tokens:
            for form, row in _compare(
                engines, _pieces(args, engines[REFERENCE].tokenizer), args.experts, progress
            ):
                rows[form] |= row
        for done, form in enumerate(forms if tasks else []):
            progress("answering tasks", done, len(forms))
            rows[form] |= _answer(engines[form], tasks, samples)
    for row in rows.values():
        if args.tokens:
            row["change"] = float(str(row["perplexity"])) / float(str(rows[REFERENCE]["perplexity"])) - 1
    title = "Forms of the weights as they are served, against plain weights in float32"
    return Report("weights", title, _columns(args), list(rows.values()), markdown=True)


def _engine(args: argparse.Namespace, dtype: str, form: str) -> Engine:
    engine = Engine(args.model, dtype=dtype, weights=form)
    for name in args.experts:
        engine.load_expert(name)
    return engine


def _pieces(args: argparse.Namespace, tokenizer: Tokenizer) -> list[list[int]]:
    """The texts' tokens; without any text what `zweave quantize` measures with of its own."""
    if not args.text:
        return read_chunks(SHIPPED, tokenizer, args.piece)[1]
    pieces = []
    for path in args.text:
        tokens = read_tokens(path, tokenizer)[: args.tokens]
        pieces += [tokens[start : start + args.piece] for start in range(0, len(tokens) - 1, args.piece)]
    return pieces


@torch.inference_mode()
def _compare(
    engines: dict[tuple[str, str], Engine],
    pieces: Sequence[Sequence[int]],
    experts: Sequence[str],
    progress: Progress,
) -> list[tuple[tuple[str, str], Row]]:
    """The figures of each form on the texts, under each expert."""
    sums = {(form, choice): Comparison() for form in engines for choice in (BASE, *experts)}
    for done, piece in enumerate(pieces):
        progress("comparing on texts", done, len(pieces))
        for choice in (BASE, *experts):
            expert = None if choice == BASE else choice
            exact = engines[REFERENCE].prompt_logits(piece, expert).log_softmax(-1)
            for form, engine in engines.items():
                same = form == REFERENCE
                found = exact if same else engine.prompt_logits(piece, expert).log_softmax(-1)
                sums[form, choice].add(found, exact, piece)
    return [(form, each.row(choice)) for (form, choice), each in sums.items()]


def _answer(engine: Engine, tasks: Sequence[Task], samples: Sequence[Sequence[Sample]]) -> Row:
    """The accuracy on each task under the expert of its name."""
    row: Row = {}
    for task, some in zip(tasks, samples, strict=True):
        (found,) = evaluate(task, some, [ExpertMethod(task.name, engine, task.name)])
        row |= {f"accuracy_{task.name}": found.accuracy, f"stderr_{task.name}": found.stderr, "n": found.n}
    return row


def _columns(args: argparse.Namespace) -> list[Column]:
    columns = [Column("provider", "dtype, weights")]
    if args.tokens:
        columns += [
            Column("perplexity", "perplexity", ".3f"),
            Column("change", "its change, %", "+.2f", 100),
            *(Column(f"kl_{choice}", f"KL {choice}", ".1e") for choice in (BASE, *args.experts)),
            *(
                Column(f"same_{choice}", f"likeliest kept, {choice}", ".3f")
                for choice in (BASE, *args.experts)
            ),
        ]
    if args.samples:
        for name in args.experts:
            columns += [
                Column(f"accuracy_{name}", f"accuracy {name}", ".3f"),
                Column(f"stderr_{name}", "± stderr", ".3f"),
            ]
    return columns
