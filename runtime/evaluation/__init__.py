"""How well a model answers tasks: methods, the baselines that every table has, rows with standard errors."""

from zweave.evaluation.baselines import baselines
from zweave.evaluation.evaluate import Row, evaluate
from zweave.evaluation.label_scores import LabelScores
from zweave.evaluation.method import ExpertMethod, Method, answer_together
from zweave.evaluation.reuse import ReuseRow, reuse_cost, reuse_markdown
from zweave.evaluation.table import markdown

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
