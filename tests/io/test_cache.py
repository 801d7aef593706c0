"""The cache directory, and its locks between processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zweave.errors import ZweaveError
from zweave.io.atomic_write import atomic_directory
from zweave.io.cache_dir import cache_dir, lock, require_space


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.setenv("ZWEAVE_CACHE", "~/there")
    assert cache_dir() == Path.home() / "there"
    monkeypatch.delenv("ZWEAVE_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "zweave"


def test_cache_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ZweaveError, match="cannot write"), lock(tmp_path / "file" / "entry"):
        pass


def test_require_space(tmp_path):
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(ZweaveError, match=r"MB free and .* needed"):
        require_space(tmp_path / "not" / "yet", 1 << 60)


def test_two_processes_build_an_entry_once(tmp_path):
    script = """
import sys, time
from pathlib import Path
from zweave.io.atomic_write import atomic_directory
from zweave.io.cache_dir import lock
target = Path(sys.argv[1])
with lock(target, waiting=lambda: print("waited")):
    if not target.is_dir():
        with atomic_directory(target) as directory:
            time.sleep(0.5)
            (directory / "file").write_text("x")
            print("built")
"""
    command = [sys.executable, "-c", script, str(tmp_path / "entry")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = sorted(run.communicate(timeout=120)[0].split() for run in runs)
    assert all(run.returncode == 0 for run in runs)
    assert [word for output in outputs for word in output].count("built") == 1


def test_lock_of_a_killed_process_is_free(tmp_path):
    script = """
import sys, time
from pathlib import Path
from zweave.io.atomic_write import atomic_directory
from zweave.io.cache_dir import lock
target = Path(sys.argv[1])
with lock(target), atomic_directory(target):
    print("held", flush=True)
    time.sleep(60)
"""
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "entry")], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "held\n"
    run.send_signal(signal.SIGKILL)
    run.communicate()
    start = time.monotonic()
    with lock(tmp_path / "entry"), atomic_directory(tmp_path / "entry"):
        pass
    assert time.monotonic() - start < 30
    assert sorted(os.listdir(tmp_path)) == [".entry.lock", "entry"]
