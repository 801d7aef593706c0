"""`zweave plan`: which weights a model keeps within a memory and error budget, and what each mode costs."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from zweave.kernels import GridKind

from ..adapters.component_pool import pool_bytes
from ..checkpoint.checkpoint import resolve_model
from ..checkpoint.model_config import ModelConfig
from ..checkpoint.module_name import linear_of
from ..decomposition.decomposition import Decomposition, decompose
from ..engine.config import EngineConfig
from ..experts.certificate import certify
from ..experts.expert import Expert
from ..model.held_weights import HeldWeights
from ..planner.cost_model import cost_model
from ..planner.delta_formats import STATED_ERROR
from ..planner.gpu_cost import DEVICES, StepShape
from ..planner.gpu_report import InvariancePrice, predict_modes, resident_bytes, step_modes
from ..planner.plan import MatrixPlan, Plan, memory, read_bytes
from ..planner.report import mode_costs
from .plan_weights import describe_forms, forms_table, plan_of


def run(args: argparse.Namespace) -> int:
    budget = None if args.max_memory is None else int(args.max_memory * (1 << 20))
    # The device only says which modes are planned for; none is looked for.
    device = "cpu" if args.device == "cpu" else "reference"
    config = EngineConfig(
        dtype=args.dtype,
        weights=args.weights,
        device=device,
        max_memory=budget,
        max_error=args.max_error,
        lora_components=args.lora_components,
    )
    checkpoint = resolve_model(args.model)
    held = HeldWeights.of(config.weights, checkpoint, config.plans_for)
    plan = plan_of(checkpoint, config, held)
    experts = {name: Expert.load(name) for name in args.certify}
    figures: dict[str, Any] = {
        "model": args.model,
        "memory_bytes": memory(plan, config.torch_dtype.itemsize),
        "read_bytes": {
            "base": read_bytes(plan, config.torch_dtype.itemsize, is_base=True),
            "expert": read_bytes(plan, config.torch_dtype.itemsize, is_base=False),
        },
        "lora_components": config.lora_components,
        "lora_bytes": _lora_bytes(plan, config),
        "shapes": _shapes(args, plan, config),
        "certificates": [],
    }
    if config.plans_for == "gpu":
        head = "model.embed_tokens.weight" if checkpoint.config.tie_embeddings else "lm_head.weight"
        head_grid = checkpoint.grid_kinds.get(head) if held.on_grid else None
        figures["gpu"] = _gpu(args, checkpoint.config, plan, config, head_grid)
    else:
        figures["forms"] = describe_forms(checkpoint, config, args.tokens, experts)
    # What refit factors cost an expert is no matter of its components: its KL was measured, or was not.
    if experts and held.refit is None:
        decomposition = decompose(checkpoint)
        figures["certificates"] = [
            _certificate(name, expert, decomposition, plan, args.max_error)
            for name, expert in experts.items()
        ]
    if args.json:
        print(json.dumps(figures))
    else:
        _show(figures, args.tokens, args.explain)
    return 0


def _lora_bytes(plan: Plan, config: EngineConfig) -> int:
    """Of the components of LoRAs that stay resident."""
    shapes = (matrix.shape for matrix in plan.values())
    return pool_bytes(shapes, config.lora_components, config.torch_dtype.itemsize)


def _shapes(args: argparse.Namespace, plan: Plan, config: EngineConfig) -> list[dict[str, Any]]:
    """One entry for each kind of matrix plan: what it keeps and, with --explain, what its modes cost."""
    kinds: dict[tuple[str, MatrixPlan], int] = {}
    for module, matrix in plan.items():
        key = (linear_of(module), matrix)
        kinds[key] = kinds.get(key, 0) + 1
    rows: list[dict[str, Any]] = []
    measured: dict[MatrixPlan, list[Any]] = {}
    for (name, matrix), count in kinds.items():
        if args.explain and config.plans_for == "cpu" and matrix not in measured:
            costs = cost_model(config.torch_dtype)
            measured[matrix] = mode_costs(matrix, args.tokens, args.experts, costs, config.torch_dtype)
        base, unlimited = matrix.mode_of(0), matrix.mode_of(matrix.rank)
        rows.append(
            {
                "matrix": name,
                "count": count,
                "shape": list(matrix.shape),
                "dense": matrix.dense,
                "grid": matrix.grid,
                "leading": matrix.delta_rank,
                "factored": matrix.factored,
                "factor_grids": matrix.factor_grids,
                "format": matrix.format,
                "int8_leading": matrix.int8_leading,
                "stated_error": STATED_ERROR[matrix.format] if matrix.format else None,
                "base_way": None if base is None else base.name.lower(),
                "expert_way": "refused" if unlimited is None else unlimited.name.lower(),
                "ways": [
                    {
                        "way": cost.mode,
                        "components": cost.components,
                        "predicted_us": round(cost.predicted_us, 1),
                        "measured_us": None if cost.measured_us is None else round(cost.measured_us, 1),
                        "chosen": cost.chosen,
                    }
                    for cost in measured.get(matrix, [])
                ],
            }
        )
    return rows


def _gpu(
    args: argparse.Namespace,
    model: ModelConfig,
    plan: Plan,
    config: EngineConfig,
    head_grid: GridKind | None,
) -> dict[str, Any]:
    """What is resident, the modes of a step, and for each known device what is predicted."""
    itemsize, shape = config.torch_dtype.itemsize, StepShape(args.tokens, args.context, args.experts)
    figures: dict[str, Any] = {
        "resident_bytes": resident_bytes(plan, itemsize),
        "modes": [mode.name.lower() for mode in step_modes(plan)],
        "predicted": [],
        "batch_invariant": [],
    }
    for rates in DEVICES:
        if config.weights == "auto":
            price = InvariancePrice.of(model, itemsize, rates)
            figures["batch_invariant"].append(
                {"device": rates.name, **asdict(price), "line": price.line(rates)}
            )
        if args.explain:
            figures["predicted"] += [
                {
                    "device": rates.name,
                    "mode": one.mode.name.lower(),
                    "decode_seconds": one.decode,
                    "prompt_products_seconds": one.prompt,
                }
                for one in predict_modes(
                    model, plan, shape, args.context, itemsize, rates, head_grid=head_grid
                )
            ]
    return figures


def _certificate(
    name: str, expert: Expert, decomposition: Decomposition, plan: Plan, max_error: float
) -> dict[str, Any]:
    sigmas = {module: decomposition.sigma(module) for module in decomposition.names}
    expert.check({module: tuple(sigma.shape) for module, sigma in sigmas.items()}, decomposition.digest)
    kept = {module: matrix.delta_rank for module, matrix in plan.items()}
    found = certify(expert, sigmas, kept)
    worst = max(found, key=lambda one: one.error)
    limited = [one for one in found if one.error <= max_error]
    return {
        "expert": name,
        "matrices": len(found),
        "delta": len(limited),
        "factored": len(found) - len(limited),
        "worst_error_of_leading": worst.error,
        "worst_matrix": worst.module,
        "error_served": max(
            (one.error + one.rounding(plan[one.module].format_of(one.support)) for one in limited),
            default=0.0,
        ),
        "refused": sum(not plan[one.module].factored and one.error > max_error for one in found),
    }


def _show(figures: Mapping[str, Any], tokens: int, explain: bool) -> None:
    console = Console(highlight=False)
    console.print(f"weights of the adapted matrices: {figures['memory_bytes'] / (1 << 20):.0f} MiB")
    if "gpu" not in figures:
        console.print(_reads(figures["read_bytes"]))
        console.print(forms_table(figures["forms"], tokens))
    if figures["lora_bytes"]:
        when = "taken at once" if "gpu" in figures else "of which each that is loaded takes its own"
        console.print(
            f"LoRAs besides: at most {figures['lora_bytes'] / (1 << 20):.0f} MiB, {when} "
            f"(--lora-components {figures['lora_components']})"
        )
    table = Table("matrices", "out x in", "keeps", "the base goes", "an expert without limits goes")
    for row in figures["shapes"]:
        factors = "refit U, V ({}, {})".format(*row["factor_grids"]) if row["factor_grids"] else "U, V"
        keeps = [f"W on its grid ({row['grid']})" if row["grid"] else "W"] * row["dense"]
        keeps += [factors] * row["factored"]
        if row["leading"]:
            keeps.append(
                f"deltas of up to {row['leading']} components"
                + (f" in {row['format']}" if row["format"] else "")
                + (f", the leading {row['int8_leading']} in int8" if row["int8_leading"] else "")
            )
        table.add_row(
            f"{row['count']} {row['matrix']}",
            " x ".join(map(str, row["shape"])),
            ", ".join(keeps),
            row["base_way"] or "refused",
            row["expert_way"],
        )
    console.print(table)
    for format, share in {
        row["format"]: row["stated_error"] for row in figures["shapes"] if row["format"]
    }.items():
        console.print(
            f"{format}: a delta loses at most {share:g} of its own spectral norm, sigma |z - 1| at its largest"
        )
    if "gpu" in figures:
        _show_gpu(console, figures["gpu"])
    elif explain:
        _show_modes(console, figures["shapes"])
    for one in figures["certificates"]:
        console.print(
            f"{one['expert']}: {one['delta']} matrices by W and a delta, exact but for at most "
            f"{one['error_served']:.1e} of a matrix's norm; {one['factored']} factored, exact; cut to the leading "
            f"components they would lose up to {one['worst_error_of_leading']:.1e} ({one['worst_matrix']})"
        )
        if one["refused"]:
            console.print(
                f"{one['expert']} would be refused: {one['refused']} matrices keep too few components"
            )


def _reads(sizes: Mapping[str, int | None]) -> str:
    names = {"base": "the base", "expert": "an expert without limits"}
    read = [f"{size / (1 << 20):.0f} MiB for a token of {names[who]}" for who, size in sizes.items() if size]
    return f"a step reads of them {', '.join(read)}"


def _show_gpu(console: Console, figures: Mapping[str, Any]) -> None:
    resident = ", ".join(
        f"{name} {size / (1 << 20):.0f} MiB" for name, size in figures["resident_bytes"].items() if size
    )
    views = "; leading components are views of U and V" if "factored" in figures["modes"] else ""
    console.print(f"resident on a GPU: {resident}{views}")
    console.print(
        f"a step takes the first of these modes that serves every slot: {', '.join(figures['modes'])}"
    )
    if figures["predicted"]:
        table = Table(
            "device", "mode", "ms a decode step", "ms of a prompt's products", title="predicted, not measured"
        )
        for one in figures["predicted"]:
            seconds = one["decode_seconds"], one["prompt_products_seconds"]
            table.add_row(one["device"], one["mode"], *(f"{1e3 * value:.3f}" for value in seconds))
        console.print(table)
    for price in figures["batch_invariant"]:
        console.print(price["line"])


def _show_modes(console: Console, shapes: list[dict[str, Any]]) -> None:
    table = Table("out x in", "mode", "components", "predicted us", "measured us", "taken")
    seen = set()
    for row in shapes:
        key = json.dumps([row["shape"], row["ways"]])
        if key in seen:
            continue
        seen.add(key)
        for cost in row["ways"]:
            table.add_row(
                " x ".join(map(str, row["shape"])),
                cost["way"],
                str(cost["components"] or ""),
                f"{cost['predicted_us']:.1f}",
                f"{cost['measured_us']:.1f}",
                "yes" if cost["chosen"] else "",
            )
    console.print(table)
