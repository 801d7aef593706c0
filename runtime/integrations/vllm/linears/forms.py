"""Which forms of each matrix a server keeps on a GPU."""

from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from ....errors import ZweaveError
from ....planner.plan import MatrixPlan
from ....planner.planner import hosted_plan

# all: W, U and V. factors: U and V, through which the base model's tokens go, too. leading: W and the leading eighth
# of U and V, for experts that adapt no more; in bytes with a scale a row if asked.
Forms: TypeAlias = Literal["all", "factors", "leading", "leading:int8"]
FORMS: tuple[Forms, ...] = get_args(Forms)


def forms_of(additional_config: object) -> Forms:
    """What vLLM's `--additional-config '{"zweave": {"forms": ...}}'` asks for, "all" if nothing.

    Raises ZweaveError for other keys and values under "zweave".
    """
    asked = additional_config.get("zweave", {}) if isinstance(additional_config, dict) else {}
    if not isinstance(asked, dict) or asked.keys() - {"forms"} or asked.get("forms", "all") not in FORMS:
        raise ZweaveError(f'--additional-config: "zweave" takes {{"forms": one of {FORMS}}}, not {asked!r}')
    forms: Forms = asked.get("forms", "all")
    return forms


def plan_of(rank: int, forms: Forms) -> MatrixPlan:
    """The plan of a matrix, of which only the rank matters."""
    plan = hosted_plan((rank, rank), dense=forms != "factors")
    if not forms.startswith("leading"):
        return plan
    return replace(plan, factored=False, format="int8" if forms == "leading:int8" else None)
