"""The pool keeps to its workers and its memory, and stops at an error or when it is left."""

import threading
import time

import pytest
import torch

from zweave.decomposition.bounded_pool import BoundedPool, Job


class Meter:
    """Counts the jobs and bytes that run at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.jobs = self.size = self.most_jobs = self.most_bytes = self.started = 0
        self.threads = set()

    def job(self, size, result=None):
        def call():
            with self.lock:
                self.started += 1
                self.jobs, self.size = self.jobs + 1, self.size + size
                self.most_jobs, self.most_bytes = (
                    max(self.most_jobs, self.jobs),
                    max(self.most_bytes, self.size),
                )
                self.threads.add(torch.get_num_threads())
            time.sleep(0.002)
            with self.lock:
                self.jobs, self.size = self.jobs - 1, self.size - size
            return result

        return Job(size, call)


def test_all_results_come_once():
    meter = Meter()
    pool = BoundedPool([meter.job(1, index) for index in range(50)], workers=4, memory=100)
    assert sorted(pool.run()) == list(range(50))
    assert meter.most_jobs == 4


def test_memory_bounds_what_runs_at_once():
    meter = Meter()
    sizes = [5, 3, 2, 9, 1, 10, 4, 4, 4, 4]
    assert len(list(BoundedPool([meter.job(size) for size in sizes], workers=8, memory=10).run())) == len(
        sizes
    )
    assert meter.most_jobs > 1 and meter.most_bytes <= 10


def test_each_job_has_one_thread_and_the_callers_number_comes_back():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        meter = Meter()
        list(BoundedPool([meter.job(1) for _ in range(4)], workers=2, memory=10).run())
        assert meter.threads == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_first_error_is_raised_and_no_further_job_starts():
    meter = Meter()

    def fail():
        raise ValueError("broken")

    jobs = [meter.job(1), Job(1, fail), *(meter.job(1) for _ in range(100))]
    with pytest.raises(ValueError, match="broken"):
        list(BoundedPool(jobs, workers=1, memory=10).run())
    assert meter.jobs == 0 and meter.started < 10


def test_leaving_early_does_not_wait_for_long(monkeypatch):
    monkeypatch.setattr("zweave.decomposition.bounded_pool.GRACE", 0.1)
    release = threading.Event()
    jobs = [Job(1, lambda: 1), Job(1, release.wait), Job(1, lambda: 3)]
    results = BoundedPool(jobs, workers=1, memory=10).run()
    assert next(results) == 1
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 1
    release.set()


def test_no_jobs():
    assert list(BoundedPool([], workers=2, memory=1).run()) == []
