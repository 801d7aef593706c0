"""How many tokens a second does a mixed batch get, here and elsewhere?

16 requests of 64 prompt and 64 new tokens, greedy, whatever they say, under no, one or eight experts, by our engine,
transformers, our experts attached to its model, PEFT's mixed batch of LoRA adapters, and by the paper's procedure,
which rebuilds the weights for each expert; then one request alone. A judge in float32 looks at every answer first.
"""

import argparse
from collections.abc import Callable, Sequence

from zweave.checkpoint.pull import DEFAULT_MODEL
from zweave.errors import ZweaveError
from zweave.options.arguments import positive_whole

from ..harness.harness import Outcome, Provider, find, measure, ratio
from ..harness.options import add_pace, chosen, pace
from ..harness.report import Column, Report, Row
from .fixtures import Stage
from .peers.peer_providers import AttachedExperts, PeftLora, Recompose, generate
from .workload import Workload

COLUMNS = (
    Column("requests", "requests", "d"),
    Column("provider", "provider"),
    Column("experts", "experts", "d"),
    Column("tok_s", "new tokens/s", ".1f"),
    Column("seconds", "s", ".2f"),
    Column("ms_token", "ms a token", ".1f"),
    Column("vs_transformers", "x transformers", ".2f"),
    Column("vs_recompose", "x recompose", ".2f"),
    Column("error", "regret", ".4f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="pulled name or directory (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(%(default)s)")
    for name, value in (("requests", 16), ("prompt", 64), ("new", 64), ("experts", 8)):
        parser.add_argument(f"--{name}", type=positive_whole, default=value, help="(%(default)s)")
    parser.add_argument("--providers", help=f"of {', '.join(PROVIDERS)} (all of them)")
    parser.add_argument("--no-single", action="store_true", help="leave out the request alone")
    add_pace(parser, rounds=3)


def run(args: argparse.Namespace) -> Report:
    names = chosen(args.providers, PROVIDERS, "--providers") if args.providers else list(PROVIDERS)
    stage = Stage(args.model, args.dtype)
    if args.prompt + args.new > stage.config.max_position:
        raise ZweaveError(f"the model takes {stage.config.max_position} tokens: lower --prompt or --new")
    missing: list[str] = []
    workload = Workload(args.requests, args.prompt, args.new)
    rows = _rows(
        measure(_providers(names, stage, workload, args.experts, missing), pace(args, warmup=0)), workload
    )
    if not args.no_single:
        single = Workload(1, args.prompt, args.new)
        alone = [name for name in names if name in ALONE]
        rows += _rows(measure(_providers(alone, stage, single, 1, []), pace(args, warmup=0)), single)
    return Report(
        "engine",
        f"{args.prompt} prompt and {args.new} new tokens a request, {args.dtype}, medians of runs in turn",
        COLUMNS,
        rows,
        sections=("requests",),
        notes=missing,
    )


def _providers(
    names: Sequence[str], stage: Stage, workload: Workload, experts: int, missing: list[str]
) -> list[Provider]:
    providers = []
    for name in names:
        try:
            providers.append(PROVIDERS[name](stage, workload, experts))
        except (ImportError, ZweaveError) as error:
            missing.append(f"Left out {name}: {error}")
    return providers


def _rows(outcomes: Sequence[Outcome], workload: Workload) -> list[Row]:
    transformers, recompose = find(outcomes, "transformers"), find(outcomes, "recompose")
    rows = []
    for outcome in outcomes:
        row = outcome.row() | {"requests": workload.requests, "prompt": workload.prompt, "new": workload.new}
        slower = ratio(transformers, outcome) if transformers else None
        rows.append(
            row
            | {
                "tok_s": workload.new_tokens / outcome.seconds if outcome.seconds else None,
                "ms_token": 1e3 * outcome.seconds / workload.new if outcome.seconds else None,
                "vs_transformers": slower,
                "vs_recompose": ratio(recompose, outcome) if recompose else None,
            }
        )
    return rows


def _ours(kind: str, many: bool) -> Callable[[Stage, Workload, int], Provider]:
    """Our engine under one or all experts of a kind."""

    def make(stage: Stage, workload: Workload, experts: int) -> Provider:
        count = 0 if kind == "base" else experts if many else 1
        name = f"zweave {kind}" if kind != "always" else "zweave"
        served = stage.served(workload, kind, count)
        prompts = workload.prompts(stage.config)
        return stage.text_provider(
            name, served, lambda answers: stage.regret(prompts, answers, kind, count), experts=count
        )

    return make


def _transformers(stage: Stage, workload: Workload, experts: int) -> Provider:
    prompts = workload.prompts(stage.config)
    return stage.text_provider(
        "transformers",
        lambda: generate(stage.transformers, prompts, workload.new),
        lambda answers: stage.regret(prompts, answers),
        experts=0,
    )


def _attached(many: bool) -> Callable[[Stage, Workload, int], Provider]:
    """transformers with our experts attached: all of them, or none."""

    def make(stage: Stage, workload: Workload, experts: int) -> Provider:
        count = experts if many else 0
        prompts = workload.prompts(stage.config)
        loaded = [stage.expert("always", index) for index in range(count)]
        attached = AttachedExperts(stage.checkpoint.directory, loaded, stage.torch_dtype)
        return stage.text_provider(
            f"transformers-zweave{count}",
            lambda: attached(prompts, workload.new),
            lambda answers: stage.regret(prompts, answers, "always", count),
            experts=count,
        )

    return make


def _peft(stage: Stage, workload: Workload, experts: int) -> Provider:
    prompts = workload.prompts(stage.config)
    lora = PeftLora(stage.checkpoint.directory, stage.decomposition.names, experts, stage.torch_dtype)
    return stage.text_provider(
        "PEFT LoRA rank 16",
        lambda: lora(prompts, workload.new),
        lambda answers: stage.mean_regret(
            prompts, answers, lambda adapter: lora.changes(adapter, stage.judge.base), experts
        ),
        experts=experts,
    )


def _recompose(stage: Stage, workload: Workload, experts: int) -> Provider:
    prompts = workload.prompts(stage.config)
    procedure = Recompose(stage.checkpoint.directory, stage.decomposition, stage.torch_dtype)
    loaded = [stage.expert("always", index) for index in range(experts)]
    return stage.text_provider(
        "recompose",
        lambda: procedure(prompts, loaded, workload.new),
        lambda answers: stage.regret(prompts, answers, "always", experts),
        experts=experts,
    )


PROVIDERS: dict[str, Callable[[Stage, Workload, int], Provider]] = {
    "base": _ours("base", many=False),
    "one": _ours("always", many=False),
    "many": _ours("always", many=True),
    "leading": _ours("leading", many=True),
    "after_prompt": _ours("after_prompt", many=True),
    "transformers": _transformers,
    "attached_base": _attached(many=False),
    "attached": _attached(many=True),
    "peft": _peft,
    "recompose": _recompose,
}
ALONE = ("base", "one", "leading", "transformers", "attached", "peft")
