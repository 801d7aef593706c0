"""How many tokens a second does a mixed batch get, here and elsewhere?"""

import argparse
from collections.abc import Callable, Sequence

from zweave.errors import ZweaveError

from ..harness.harness import Outcome, Provider, find, measure, per_second, ratio
from ..harness.options import pace
from ..harness.report import Column, Report, Row
from .fixtures import Fixtures
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


def run(args: argparse.Namespace) -> Report:
    names = args.providers or list(PROVIDERS)
    fixtures = Fixtures(args.model, args.dtype)
    if args.prompt + args.new > fixtures.config.max_position:
        raise ZweaveError(f"the model takes {fixtures.config.max_position} tokens: lower --prompt or --new")
    missing: list[str] = []
    workload = Workload(args.requests, args.prompt, args.new)
    rows = _rows(
        measure(_providers(names, fixtures, workload, args.experts, missing), pace(args, warmup=0)), workload
    )
    if not args.no_single:
        single = Workload(1, args.prompt, args.new)
        alone = [name for name in names if name in ALONE]
        rows += _rows(measure(_providers(alone, fixtures, single, 1, []), pace(args, warmup=0)), single)
    return Report(
        "engine",
        f"{args.prompt} prompt and {args.new} new tokens a request, {args.dtype}, medians of runs in turn",
        COLUMNS,
        rows,
        sections=("requests",),
        notes=missing,
    )


def _providers(
    names: Sequence[str], fixtures: Fixtures, workload: Workload, experts: int, missing: list[str]
) -> list[Provider]:
    providers = []
    for name in names:
        try:
            providers.append(PROVIDERS[name](fixtures, workload, experts))
        except (ImportError, ZweaveError) as error:
            missing.append(f"Left out {name}: {error}")
    return providers


def _rows(outcomes: Sequence[Outcome], workload: Workload) -> list[Row]:
    transformers, recompose = find(outcomes, "transformers"), find(outcomes, "recompose")
    rows = []
    for outcome in outcomes:
        row = outcome.row() | workload.labels()
        row |= {
            "tok_s": per_second(workload.new_tokens, outcome),
            "ms_token": 1e3 * outcome.seconds / workload.new if outcome.seconds else None,
            "vs_transformers": ratio(transformers, outcome),
            "vs_recompose": ratio(recompose, outcome),
        }
        rows.append(row)
    return rows


def _ours(kind: str, many: bool) -> Callable[[Fixtures, Workload, int], Provider]:
    """Our engine under one or all experts of a kind."""

    def make(fixtures: Fixtures, workload: Workload, experts: int) -> Provider:
        count = 0 if kind == "base" else experts if many else 1
        name = f"zweave {kind}" if kind != "always" else "zweave"
        server = fixtures.engine_server(workload, kind, count)
        prompts = workload.prompts(fixtures.config)
        return fixtures.text_provider(
            name, server, lambda answers: fixtures.regret(prompts, answers, kind, count), experts=count
        )

    return make


def _transformers(fixtures: Fixtures, workload: Workload, experts: int) -> Provider:
    prompts = workload.prompts(fixtures.config)
    return fixtures.text_provider(
        "transformers",
        lambda: generate(fixtures.transformers, prompts, workload.new),
        lambda answers: fixtures.regret(prompts, answers),
        experts=0,
    )


def _attached(many: bool) -> Callable[[Fixtures, Workload, int], Provider]:
    """transformers with our experts attached: all of them, or none."""

    def make(fixtures: Fixtures, workload: Workload, experts: int) -> Provider:
        count = experts if many else 0
        prompts = workload.prompts(fixtures.config)
        loaded = [fixtures.expert("always", index) for index in range(count)]
        attached = AttachedExperts(fixtures.checkpoint.directory, loaded, fixtures.torch_dtype)
        return fixtures.text_provider(
            f"transformers-zweave{count}",
            lambda: attached(prompts, workload.new),
            lambda answers: fixtures.regret(prompts, answers, "always", count),
            experts=count,
        )

    return make


def _peft(fixtures: Fixtures, workload: Workload, experts: int) -> Provider:
    prompts = workload.prompts(fixtures.config)
    lora = PeftLora(
        fixtures.checkpoint.directory, fixtures.decomposition.names, experts, fixtures.torch_dtype
    )
    return fixtures.text_provider(
        "PEFT LoRA rank 16",
        lambda: lora(prompts, workload.new),
        lambda answers: fixtures.mean_regret(
            prompts, answers, lambda adapter: lora.changes(adapter, fixtures.reference_model.base), experts
        ),
        experts=experts,
    )


def _recompose(fixtures: Fixtures, workload: Workload, experts: int) -> Provider:
    prompts = workload.prompts(fixtures.config)
    procedure = Recompose(fixtures.checkpoint.directory, fixtures.decomposition, fixtures.torch_dtype)
    loaded = [fixtures.expert("always", index) for index in range(experts)]
    return fixtures.text_provider(
        "recompose",
        lambda: procedure(prompts, loaded, workload.new),
        lambda answers: fixtures.regret(prompts, answers, "always", experts),
        experts=experts,
    )


PROVIDERS: dict[str, Callable[[Fixtures, Workload, int], Provider]] = {
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
