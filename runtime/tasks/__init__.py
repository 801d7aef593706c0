"""Tasks: prompts, answers, rewards and splits. What is trained on, searched on and evaluated on."""

from .registry import BUILT_IN, resolve_task
from .render import answer_ids, expert_template, label_ids, prompt_ids
from .task import Sample, Split, Splits, Task, balanced, balanced_shots
from .which_task import which_task

__all__ = [
    "BUILT_IN",
    "Sample",
    "Split",
    "Splits",
    "Task",
    "answer_ids",
    "balanced",
    "balanced_shots",
    "expert_template",
    "label_ids",
    "prompt_ids",
    "resolve_task",
    "which_task",
]
