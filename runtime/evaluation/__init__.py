"""Evaluation on tasks: methods, the baselines of every table, rows with standard errors."""

from .baselines import baselines
from .evaluate import Row, evaluate
from .label_scores import LabelScores
from .method import ExpertMethod, Method, answer_together
from .reuse import ReuseRow, reuse_cost, reuse_markdown
from .table import markdown

__all__ = [
    "ExpertMethod",
    "LabelScores",
    "Method",
    "ReuseRow",
    "Row",
    "answer_together",
    "baselines",
    "evaluate",
    "markdown",
    "reuse_cost",
    "reuse_markdown",
]
