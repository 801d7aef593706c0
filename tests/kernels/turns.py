"""Has the interpreter run the programs of a grid in turns, as a device may: executed in the interpreter's process.

As many programs as are resident run side by side, the lowest numbers first. One goes on until its next atomic; then any
of them does, as a seed has it.
"""

import random
import sys
import threading
from collections.abc import Callable
from typing import Any

from triton.runtime.interpreter import interpreter_builder as builder

MAX_TURNS = 20_000
_set_grid_dim, _atomic = builder.set_grid_dim, builder.create_atomic_rmw


class _Program(threading.Thread):
    def __init__(self, number: int, run: Callable[[], None], done: threading.Semaphore) -> None:
        super().__init__(daemon=True)
        self.number, self._run_program, self._done = number, run, done
        self._go = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.ended = False

    def run(self) -> None:
        self._go.acquire()
        try:
            self._run_program()
        except BaseException as error:
            self.error = error
        self.ended = True
        self._done.release()

    def go_on(self) -> None:
        """Runs the program up to its next atomic, or its end."""
        builder.set_grid_idx(self.number, 0, 0)
        self._go.release()
        self._done.acquire()
        if self.error is not None:
            raise self.error

    def pause(self) -> None:
        self._done.release()
        self._go.acquire()


class _Grid:
    """Stands in for a kernel: takes the calls of all its programs, and runs them with the last."""

    def __init__(self, kernel: Callable[..., None], programs: int, seed: int, resident: int) -> None:
        self.kernel, self.programs, self.resident, self.calls = kernel, programs, resident, 0
        self.random = random.Random(seed)

    def __call__(self, **arguments: Any) -> None:
        self.calls += 1
        if self.calls < self.programs:
            return
        done = threading.Semaphore(0)
        run = lambda: self.kernel(**arguments)  # noqa: E731
        waiting = [_Program(number, run, done) for number in range(self.programs)]
        running: list[_Program] = []
        for _ in range(MAX_TURNS):
            while waiting and len(running) < self.resident:
                running.append(waiting.pop(0))
                running[-1].start()
            if not running:
                return
            program = self.random.choice(running)
            program.go_on()
            if program.ended:
                running.remove(program)
        raise RuntimeError("programs wait for ever")


def install(seed: int, resident: int) -> None:
    def set_grid_dim(*dim: int) -> None:
        _set_grid_dim(*dim)
        if dim[1:] == (1, 1):
            executor = sys._getframe(1).f_locals["self"]
            executor.fn = _Grid(executor.fn, dim[0], seed, resident)

    def atomic(*arguments: Any) -> Any:
        thread = threading.current_thread()
        if isinstance(thread, _Program):
            thread.pause()
        return _atomic(*arguments)

    builder.set_grid_dim, builder.create_atomic_rmw = set_grid_dim, atomic


def uninstall() -> None:
    builder.set_grid_dim, builder.create_atomic_rmw = _set_grid_dim, _atomic
