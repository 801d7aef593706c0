"""Tasks: prompts, answers, rewards and splits. What is trained on, searched on and evaluated on."""

from zweave.tasks.task import Sample, Split, Splits, Task, balanced

__all__ = ["Sample", "Split", "Splits", "Task", "balanced"]
