"""Tasks: prompts, answers, rewards and splits. What is trained on, searched on and evaluated on."""

from .registry import BUILT_IN, resolve_task
from .render import answer_ids, answer_limit, expert_template, label_tokens, prompt_ids
from .task import Sample, Split, Splits, Task, balanced, balanced_shots, says_label
from .which_task import which_task

__all__ = [
    "BUILT_IN",
    "Sample",
    "Split",
    "Splits",
    "Task",
    "answer_ids",
    "answer_limit",
    "balanced",
    "balanced_shots",
    "expert_template",
    "label_tokens",
    "prompt_ids",
    "resolve_task",
    "says_label",
    "which_task",
]
