"""Which expert a body asks for, by its `model` or its `expert`."""

from collections.abc import Collection, Mapping

from ...errors import shortened
from ...experts.mixture import ExpertChoice
from ..errors import ApiError
from ..protocol.expert_field import ExpertField


def expert_choice(
    model: str,
    expert: ExpertField | None,
    base_names: Collection[str],
    aliases: Mapping[str, ExpertChoice],
) -> ExpertChoice:
    """The choice, as `Request.expert` takes it.

    model: a name of `base_names`, an expert, NAME:WEIGHT+NAME:WEIGHT, a name of `aliases`, or "auto".
    expert: beside a name of `base_names` alone.
    Raises ApiError for a mixture that cannot be read, or two answers to the question.
    """
    if expert is not None:
        if model not in base_names:
            raise ApiError(
                400, f"model names {shortened(model)} and expert names another: leave one of them out"
            )
        return _from_field(expert)
    if model in base_names:
        return None
    if model in aliases:
        return aliases[model]
    return _mixture(model) if ":" in model else model


def _from_field(expert: ExpertField) -> ExpertChoice:
    if isinstance(expert, str):
        return _mixture(expert) if ":" in expert else expert
    if isinstance(expert, dict):
        return expert
    return _unique([(part.expert, part.scale) for part in expert])


def _mixture(text: str) -> dict[str, float | list[float]]:
    """NAME:WEIGHT+NAME:WEIGHT as a mapping."""
    parts: list[tuple[str, float | list[float]]] = []
    for item in text.split("+"):
        name, _, weight = item.rpartition(":")
        try:
            parts.append((name, float(weight)))
        except ValueError:
            raise ApiError(
                400, f"a mixture is written NAME:WEIGHT+NAME:WEIGHT, not {shortened(text)}"
            ) from None
    return _unique(parts)


def _unique(parts: list[tuple[str, float | list[float]]]) -> dict[str, float | list[float]]:
    found: dict[str, float | list[float]] = {}
    for name, weight in parts:
        if name in found:
            raise ApiError(400, f"the mixture names the expert {shortened(name)} twice")
        found[name] = weight
    return found
