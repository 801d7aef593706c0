"""Which forms of each matrix stay resident, and which one a token uses."""

from .plan import MatrixPlan, Plan
from .planner import make_plan, plan_for

__all__ = [
    "MatrixPlan",
    "Plan",
    "make_plan",
    "plan_for",
]
