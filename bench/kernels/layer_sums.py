"""What the stages of a layer take together, and a line through their times over their bytes."""

from collections.abc import Sequence

from ..harness.fit import Fit
from ..harness.report import Row


def layer_rows(rows: Sequence[Row], stages: int) -> list[Row]:
    """A row for each form that has a time for all stages, of one number of tokens and of experts.

    fixed_seconds, asymptote_gb_s: of a stage, by least squares over the stages; see `Fit`.
    """
    found = []
    for name in dict.fromkeys(str(row["provider"]) for row in rows):
        mine = [row for row in rows if row["provider"] == name and row.get("seconds")]
        if len(mine) == stages > 1:
            found.append(_sum(mine))
    dense = next((row for row in found if row["provider"] == "cuBLAS dense"), None)
    for row in found:
        row["vs_cublas"] = _number(row, "seconds") / _number(dense, "seconds") if dense else None
    return found


def _sum(rows: Sequence[Row]) -> Row:
    seconds, moved, flops = ([_number(row, key) for row in rows] for key in ("seconds", "moved", "flops"))
    fit = Fit.of(moved, seconds)
    layer: Row = {key: rows[0][key] for key in ("provider", "status", "T", "E")}
    layer |= {"stage": "layer", "seconds": sum(seconds), "moved": sum(moved), "flops": sum(flops)}
    layer |= {"gb_s": sum(moved) / sum(seconds) / 1e9, "gflop_s": sum(flops) / sum(seconds) / 1e9}
    layer["fixed_seconds"] = fit and fit.fixed
    layer["asymptote_gb_s"] = fit and fit.rate and fit.rate / 1e9
    if all(row.get("predicted_seconds") for row in rows):
        predicted = sum(_number(row, "predicted_seconds") for row in rows)
        layer |= {"predicted_seconds": predicted, "predicted_for": rows[0]["predicted_for"]}
        layer["vs_predicted"] = sum(seconds) / predicted
    return layer


def _number(row: Row, key: str) -> float:
    value = row[key]
    assert isinstance(value, (int, float))
    return float(value)
