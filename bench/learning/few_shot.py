"""How long does a few-shot search take for a candidate, against rebuilding the weights for each?"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import fmean

import torch

from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.experts import Expert, bundled_experts
from zweave.options.engine_options import check_named, load_named
from zweave.options.task_options import data_folder
from zweave.tasks import Sample, Task, balanced_shots, prompt_ids, resolve_task

from ..harness.harness import Outcome, Provider, measure, ratio
from ..harness.options import pace
from ..harness.report import Column, Report, Row
from ..serving.fixtures import Fixtures
from .candidates import Answering, MixedBatch, Population, RebuiltInEngine, RebuiltModel

# Mean distance of a token's reported log-probability from that of the reference model's choice, in nats. Rounding to
# bfloat16 comes to .01 to .05 on SmolLM2, the answers of another mixture to .2, those of the base to .3 and more.
SCORE_LIMITS = {torch.bfloat16: 0.1, torch.float32: 1e-2}
OURS, PAPER = "zweave", "rebuilt, transformers"
COLUMNS = (
    Column("task", "task"),
    Column("provider", "provider"),
    Column("prompt_tokens", "prompt tokens", "d"),
    Column("seconds", "ms a candidate", ".0f", 1e3),
    Column("vs_rebuilt", "of rebuilding", ".3f"),
    Column("error", "error, nats", ".4f"),
)


def run(args: argparse.Namespace) -> Report:
    data = data_folder(args)
    names = args.experts or [name for name in bundled_experts() if Expert.load(name).scope == "always"]
    check_named(args, names)
    shots: list[tuple[Task, list[Sample]]] = []
    for task in map(resolve_task, args.tasks):
        train = task.samples("train", data)
        shots.append((task, balanced_shots(train, task.labels, 0, args.shots)))
    fixtures = Fixtures(args.model, args.dtype)
    engine = Engine(fixtures.checkpoint.directory, dtype=args.dtype)
    population = Population(_experts(engine, names), args.population, fixtures.config.num_layers)
    answering = _answering(fixtures, engine, population)
    rows: list[Row] = []
    for task, some in shots:
        case = Case(fixtures, engine, population, task, some, min(args.rebuilt, population.size))
        outcomes = measure(
            [case.provider(name, answers) for name, answers in answering.items()], pace(args, warmup=0)
        )
        rows += case.rows(outcomes)
    title = f"{args.population} mixtures of {len(names)} experts on {args.shots} shots, {args.dtype}"
    return Report("few-shot", title, COLUMNS, rows, sections=("task",))


def _experts(engine: Engine, names: Sequence[str]) -> dict[str, Expert]:
    load_named(engine, names)
    experts = {name: engine.bank.expert(name) for name in names}
    for name, expert in experts.items():
        if expert.scope != "always" or expert.renormalise:
            raise ZweaveError(f"{name} cannot be compared: it acts after the prompt, or is renormalised")
    return experts


def _answering(fixtures: Fixtures, engine: Engine, population: Population) -> dict[str, Answering]:
    """The providers by name. The paper's procedure comes in both types: on a CPU either may be the faster."""
    directory, factors = fixtures.checkpoint.directory, fixtures.decomposition
    answering: dict[str, Answering] = {
        OURS: MixedBatch(engine),
        "rebuilt, our forward pass": RebuiltInEngine(engine, factors),
    }
    for dtype in (torch.bfloat16, torch.float32):
        name = f"{PAPER} {str(dtype).removeprefix('torch.')}"
        answering[name] = RebuiltModel(directory, factors, dtype, population, engine.tokenizer)
    return answering


@dataclass(frozen=True)
class Case:
    """One task's shots.

    few: candidates that are checked, and rebuilt in a round.
    """

    fixtures: Fixtures
    engine: Engine
    population: Population
    task: Task
    shots: Sequence[Sample]
    few: int

    @property
    def prompts(self) -> list[list[int]]:
        return [prompt_ids(self.engine.tokenizer, shot.prompt) for shot in self.shots]

    def provider(self, name: str, answers: Answering) -> Provider:
        taken = self.population.size if name == OURS else self.few
        # Population 0 is for the check.
        numbers = count(1)

        def call() -> object:
            return answers(self.task, self.shots, self.population.draw(next(numbers))[:taken])

        share = taken / self.population.size
        limit = SCORE_LIMITS[torch.bfloat16 if "bfloat16" in name else self.fixtures.torch_dtype]
        labels: dict[str, object] = {"task": self.task.name}
        return Provider(name, [call], lambda: self.error(answers), limit, share, labels)

    def error(self, answers: Answering) -> float:
        """Mean over the tokens of |reported log p - the reference model's log p of its own choice|.

        The answers are greedy: an answer under another mixture shows as a wrong log p.
        """
        candidates = self.population.draw(0)[: self.few]
        distances: list[float] = []
        for candidate, found in zip(candidates, answers(self.task, self.shots, candidates), strict=True):
            changes = self.fixtures.reference_model.svf(self.population.expert(candidate))
            tokens = [[token for token, _ in answer] for answer in found]
            best = self.fixtures.reference_model.likeliest(self.prompts, tokens, changes)
            for answer, wanted in zip(found, best, strict=True):
                distances += [abs(p - q) for (_, p), q in zip(answer, wanted, strict=True)]
        return fmean(distances)

    def rows(self, outcomes: Sequence[Outcome]) -> list[Row]:
        """The rows; seconds are of one candidate, vs_rebuilt over the faster of the paper's procedures."""
        paper = [o for o in outcomes if o.provider.name.startswith(PAPER) and o.seconds is not None]
        base = min(paper, key=lambda outcome: outcome.seconds or 0.0, default=None)
        rows = []
        for outcome in outcomes:
            row = outcome.row() | {"prompt_tokens": sum(map(len, self.prompts)), "shots": len(self.shots)}
            if outcome.seconds is not None:
                row["seconds"] = outcome.seconds / self.population.size
            rows.append(row | {"candidates": self.population.size, "vs_rebuilt": ratio(outcome, base)})
        return rows
