"""Cache entries are whole or absent, whatever happens while they are written."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zweave.errors import ZweaveError
from zweave.io.cache_dir import atomic_directory, cache_dir, lock, require_space


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.setenv("ZWEAVE_CACHE", "~/there")
    assert cache_dir() == Path.home() / "there"
    monkeypatch.delenv("ZWEAVE_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "zweave"


def test_directory_appears_whole(tmp_path):
    target = tmp_path / "a" / "entry"
    with atomic_directory(target) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "file").write_text("x")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "x"
    assert os.listdir(target.parent) == ["entry"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_directory_vanishes_on_failure(tmp_path, error):
    with pytest.raises(error), atomic_directory(tmp_path / "entry") as directory:
        (directory / "file").write_text("x")
        raise error
    assert os.listdir(tmp_path) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    stale = tmp_path / ".entry.0123.tmp"
    stale.mkdir()
    (stale / "file").write_text("half")
    other = tmp_path / ".entry2.0123.tmp"
    other.mkdir()
    with atomic_directory(tmp_path / "entry"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".entry2.0123.tmp", "entry"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["full", "quota", "safetensors"],
)
@pytest.mark.parametrize("in_cache", [True, False])
def test_full_disk_is_one_clear_line(tmp_path, monkeypatch, in_cache, error):
    if in_cache:
        monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path))
    message = r"^no space left on the disk of .*entry: free some( or set ZWEAVE_CACHE to another disk)?$"
    with pytest.raises(ZweaveError, match=message) as caught, atomic_directory(tmp_path / "entry"):
        raise error
    assert ("ZWEAVE_CACHE" in str(caught.value)) is in_cache
    assert os.listdir(tmp_path) == []


def test_other_errors_pass(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "entry"):
        (tmp_path / "absent").read_text()


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
from zweave.io.cache_dir import atomic_directory, lock
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
from zweave.io.cache_dir import atomic_directory, lock
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
