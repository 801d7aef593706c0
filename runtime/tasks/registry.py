"""Tasks by name: the built-in ones, reasoning-gym's, and a user's own files."""

from difflib import get_close_matches
from pathlib import Path

from ..errors import ZweaveError
from . import arithmetic, classification, code, domains, exact_match, letters, multiple_choice
from .reasoning_gym import gym_task
from .task import Task
from .user_file import jsonl_task, python_task

_READERS = (classification, domains, multiple_choice, exact_match, code, arithmetic, letters)
BUILT_IN = {task.name: task for reader in _READERS for task in reader.TASKS}


def resolve_task(name: str) -> Task:
    """The task of a built-in name, of `gym:GENERATOR`, of a .jsonl or of a .py file.

    A Python file is run. Raises ZweaveError for an unknown name, with the names that there are, and for a file
    that is missing or malformed.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name.startswith("gym:"):
        return gym_task(name.removeprefix("gym:"))
    path = Path(name)
    if path.suffix in (".jsonl", ".py"):
        if not path.is_file():
            raise ZweaveError(f"there is no task file {name}")
        return python_task(path) if path.suffix == ".py" else jsonl_task(path)
    close = get_close_matches(name, BUILT_IN, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ZweaveError(
        f"there is no task {name!r}: {hint}choose of {', '.join(BUILT_IN)}, gym:GENERATOR, or give a .jsonl or "
        ".py file"
    )
