"""What `zweave plan` tells of each form in which a model's weights can stay."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from ..checkpoint.checkpoint import Checkpoint
from ..decomposition.refit.quantized_model import BASE
from ..engine.config import EngineConfig
from ..errors import ZweaveError
from ..experts.expert import Expert
from ..model.held_weights import HeldWeights
from ..names import WEIGHTS
from ..planner.cost_model import CostModel, cost_model
from ..planner.plan import Plan, memory, read_bytes
from ..planner.planner import plan_for


def describe_forms(
    checkpoint: Checkpoint, config: EngineConfig, tokens: int, experts: Mapping[str, Expert]
) -> list[dict[str, Any]]:
    """Bytes, predicted time of the products of a step of some tokens, and KL, of each form that a CPU can have.

    experts: whose KL is told beside the base's, where it was measured.
    """
    costs = cost_model(config.torch_dtype)
    rows: list[dict[str, Any]] = []
    for form in WEIGHTS:
        try:
            held = HeldWeights.of(form, checkpoint)
            plan = plan_of(checkpoint, config, held)
        except ZweaveError as error:
            rows.append({"weights": form, "missing": str(error)})
            continue
        kl: dict[str, float | None] = {}
        if held.refit is not None:
            kl = {BASE: held.refit.divergence()}
            kl |= {name: held.refit.divergence(expert.digest) for name, expert in experts.items()}
        sides = {"base": True, "expert": False}
        itemsize = config.torch_dtype.itemsize
        rows.append(
            {
                "weights": form,
                "memory_bytes": memory(plan, itemsize),
                "read_bytes": {name: read_bytes(plan, itemsize, is_base) for name, is_base in sides.items()},
                "predicted_us": {
                    name: _microseconds(plan, costs, tokens, is_base) for name, is_base in sides.items()
                },
                "kl": kl,
            }
        )
    return rows


def forms_table(rows: Iterable[Mapping[str, Any]], tokens: int) -> Table:
    """base / expert without limits, where they differ."""
    table = Table("weights", "MiB kept", "read", f"predicted ms, {tokens} tokens", "KL, nats a token")
    for row in rows:
        if "missing" in row:
            table.add_row(row["weights"], "", "", "", row["missing"])
            continue
        read = [_in(1 << 20, size, 0) for size in row["read_bytes"].values()]
        spent = [_in(1e3, us, 1) for us in row["predicted_us"].values()]
        kept = _in(1 << 20, row["memory_bytes"], 0)
        table.add_row(row["weights"], kept, " / ".join(read), " / ".join(spent), _kl(row["kl"]))
    return table


def plan_of(checkpoint: Checkpoint, config: EngineConfig, held: HeldWeights) -> Plan:
    """What an engine keeps of each matrix where its weights stay in a form; ZweaveError if that cannot be."""
    return plan_for(
        checkpoint.config.adapted_shapes(),
        config.plans_for,
        config.torch_dtype,
        config.max_memory,
        config.max_error,
        given=held.plan,
    )


def _microseconds(plan: Plan, costs: CostModel, tokens: int, is_base: bool) -> float | None:
    """Of the base's tokens, or of those of an expert without limits; None if that is refused."""
    total = 0.0
    for matrix in plan.values():
        mode = matrix.mode_of(0 if is_base else matrix.rank)
        if mode is None:
            return None
        total += 1e6 * costs.seconds(mode, matrix, tokens)
    return round(total, 1)


def _in(unit: float, value: float | None, digits: int) -> str:
    return "refused" if value is None else f"{value / unit:.{digits}f}"


def _kl(measured: Mapping[str, float | None]) -> str:
    """As `zweave quantize` measured it; what only rounds to the dtype has none."""
    return ", ".join(
        f"{name} {'not measured' if value is None else f'{value:.1e}'}" for name, value in measured.items()
    )
