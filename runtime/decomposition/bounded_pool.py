"""Jobs on several threads within a bound of memory: a decomposition takes gigabytes, and as many as there are
cores at once would be killed by the system; the pools of the standard library bound the number of jobs alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Condition, Thread
from time import monotonic
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

GRACE = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """A call and the bytes it needs while it runs."""

    size: int
    call: Callable[[], T]


class BoundedPool(Generic[T]):
    """Runs jobs in their order, each on one core.

    PyTorch runs on one thread an operation meanwhile, in the whole process.

    workers: jobs at once, as long as their sizes together fit into `memory`.
    memory: bytes; no job may be larger, for it would never start.
    """

    def __init__(self, jobs: Sequence[Job[T]], workers: int, memory: int) -> None:
        self._jobs = list(reversed(jobs))
        self._count = len(jobs)
        self._workers = min(workers, len(jobs))
        self._free = memory
        self._change = Condition()
        self._done: SimpleQueue[T | BaseException] = SimpleQueue()

    def run(self) -> Iterator[T]:
        """Yields results as they come; the first error of a job is raised and no further job starts.

        A loop that is left early, by an interrupt too, waits for the running jobs, but no longer than GRACE:
        the threads of longer jobs end with their job or with the process.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        workers = [Thread(target=self._work, daemon=True) for _ in range(self._workers)]
        for worker in workers:
            worker.start()
        try:
            for _ in range(self._count):
                result = self._done.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            with self._change:
                self._jobs.clear()
                self._change.notify_all()
            # A thread that comes back from PyTorch while the interpreter shuts down would abort the process.
            deadline = monotonic() + GRACE
            for worker in workers:
                worker.join(max(0.0, deadline - monotonic()))
            torch.set_num_threads(threads)

    def _work(self) -> None:
        # The number of threads belongs to the thread that sets it.
        torch.set_num_threads(1)
        while True:
            with self._change:
                self._change.wait_for(lambda: not self._jobs or self._jobs[-1].size <= self._free)
                if not self._jobs:
                    return
                job = self._jobs.pop()
                self._free -= job.size
            try:
                self._done.put(job.call())
            except BaseException as error:
                self._done.put(error)
            with self._change:
                self._free += job.size
                self._change.notify_all()
