"""`zweave expert search`: finds the mixture of experts that answers a task's few samples best."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..engine.engine import Engine
from ..experts.expert import Expert
from ..experts.mixture import mix_experts
from ..options.engine_options import check_named, load_named, open_engine, stderr
from ..options.task_options import data_folder
from ..search.cem import CemConfig
from ..search.few_shot import Found, Generation, Weighting, search
from ..tasks import balanced_shots, expert_template, resolve_task
from ..text.prompt_template import PromptTemplate


def run(args: argparse.Namespace) -> int:
    config = CemConfig(population=args.population, generations=args.generations, seed=args.seed)
    task = resolve_task(args.task)
    train = task.samples("train", data_folder(args), args.seed)
    shots = balanced_shots(train, task.labels, args.seed, args.shots)
    check_named(args, args.experts, takes_loras=False)
    engine = open_engine(args)
    experts = _load(engine, args.experts)
    layers = engine.model.config.num_layers if args.per_layer else 1
    weighting = Weighting(tuple(experts), layers, not args.free)
    start = time.perf_counter()
    found = search(engine, task, shots, weighting, config, _report)
    seconds = time.perf_counter() - start
    template = expert_template(task, train, engine.tokenizer)
    _save(found, experts, engine.model.config.num_layers, task.name, template, config, args)
    _print(found, seconds, args)
    return 0


def _load(engine: Engine, names: Sequence[str]) -> dict[str, Expert]:
    """Loads the experts into memory: every candidate of every generation reads them."""
    load_named(engine, names)
    experts = {name: engine.bank.expert(name) for name in names}
    for name, expert in experts.items():
        engine.load_expert(name, expert)
    # Experts that cannot be mixed are an error before the search begins.
    engine.check_expert(dict.fromkeys(experts, 1.0))
    return experts


def _report(generation: Generation) -> None:
    stderr.print(
        f"generation {generation.number}: best {generation.share:.3f} of the shots "
        f"(log-likelihood {generation.log_likelihood:.3f}), mean {generation.mean_share:.3f}",
        style="dim",
    )


def _save(
    found: Found,
    experts: dict[str, Expert],
    layers: int,
    task: str,
    template: PromptTemplate,
    config: CemConfig,
    args: argparse.Namespace,
) -> None:
    weights = {
        name: [alpha] * layers if isinstance(alpha, float) else list(alpha)
        for name, alpha in found.mixture.items()
    }
    mixed = mix_experts(list(experts.values()), [weights[name] for name in experts])
    record = {
        "mixture": [
            {"file": Path(name).name, "digest": expert.digest, "weight": found.mixture[name]}
            for name, expert in experts.items()
        ],
        "search": {"task": task, "shots": args.shots, "share": found.share} | asdict(config),
    }
    expert = replace(mixed, description=f"a mixture for {task}", training=record, prompt_template=template)
    expert.save(args.out, half=args.half)


def _print(found: Found, seconds: float, args: argparse.Namespace) -> None:
    if args.json:
        figures = {
            "mixture": found.mixture,
            "share": found.share,
            "searched": found.searched,
            "singles": found.singles,
            "seconds": seconds,
        }
        print(json.dumps(figures))
        return
    for name, row in zip(args.experts, found.weights, strict=True):
        spread = f", from {row.min():.3f} to {row.max():.3f}" if args.per_layer else ""
        print(f"{name}: weight {row.mean():.3f}{spread}; alone {found.singles[name]:.3f} of the shots")
    if found.share < found.searched:
        print(
            f"the best mixture, {found.searched:.3f}, gains no standard error on the best expert: that is taken"
        )
    print(f"{args.out}: {found.share:.3f} of the shots, {seconds:.1f} s")
