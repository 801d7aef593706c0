"""Options of the commands that read tasks."""

import argparse
import os
from pathlib import Path

TASK_HELP = "a built-in name, gym:GENERATOR, a .jsonl or a .py file"


def add_data_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="with the task files in it or in its tasks/ ($ZWEAVE_DATA)"
    )


def data_folder(args: argparse.Namespace) -> Path | None:
    """The directory of the task files, None when none was named; tasks that need one say so."""
    named = args.data or os.environ.get("ZWEAVE_DATA")
    if not named:
        return None
    folder = Path(named) / "tasks"
    return folder if folder.is_dir() else Path(named)
