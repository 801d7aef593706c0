"""Tasks of which the prompt says nothing, and sentences that describe them."""

from .hidden_task import HiddenTask, as_task, chosen_tasks, hidden_tasks
from .levels import Levels, split_levels

__all__ = ["HiddenTask", "Levels", "as_task", "chosen_tasks", "hidden_tasks", "split_levels"]
