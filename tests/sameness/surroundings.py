"""A cache of its own for the time of a run, and clocks and threads whose timing changes nothing."""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from zweave.cli.main import main


@contextmanager
def surroundings(only: str) -> Iterator[None]:
    """Sets ZWEAVE_CACHE to an empty cache that sees the user's models and decompositions.

    Tiny models are decomposed anew in it, and the machine's costs, which are measured, are not the user's.
    """
    user = Path(os.environ.get("ZWEAVE_CACHE") or "~/.cache/zweave").expanduser().absolute()
    for command in ("pull", "decompose"):
        if main([command, "smollm2"]) != 0:
            raise SystemExit(f"zweave {command} smollm2 fails")
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ZWEAVE_CACHE=folder):
        for kind in user.iterdir():
            if kind.is_dir() and kind.name != "cost":
                (Path(folder) / kind.name).mkdir()
                for entry in kind.iterdir():
                    (Path(folder) / kind.name / entry.name).symlink_to(entry)
        yield


@contextmanager
def fixed_clock() -> Iterator[None]:
    """A clock that ticks once a look: whatever is measured takes a millisecond."""
    ticks = itertools.count()
    with mock.patch("time.perf_counter", lambda: next(ticks) / 1000):
        yield


@contextmanager
def threads_at_once() -> Iterator[None]:
    """What is given to a pool of threads is done before the caller goes on."""

    def submit(
        self: ThreadPoolExecutor, function: Callable[..., Any], *args: Any, **named: Any
    ) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **named))
        return future

    with mock.patch.object(ThreadPoolExecutor, "submit", submit):
        yield
