"""Files and folders are whole or absent, whatever happens while they are written."""

import errno
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zweave.errors import ZweaveError
from zweave.io import atomic_write as module_under_test
from zweave.io.atomic_write import atomic_directory, atomic_write, write_text
from zweave.io.figure import new_figure, write_png
from zweave.tasks import Sample, Splits, Task
from zweave.train.loop import Training
from zweave.train.recipe import Recipe


@pytest.mark.parametrize("to_disk", [False, True])
def test_file_is_replaced_whole(tmp_path, monkeypatch, to_disk):
    flushed = []
    monkeypatch.setattr(module_under_test, "flush", flushed.append)
    target = tmp_path / "file"
    target.write_text("old")
    with atomic_write(target, to_disk) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]
    assert flushed == ([temporary] if to_disk else [])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_file_stays_as_it_was_on_failure(tmp_path, error):
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


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
@pytest.mark.parametrize("write", [atomic_write, atomic_directory])
def test_full_disk_is_one_clear_line(tmp_path, monkeypatch, write, in_cache, error):
    if in_cache:
        monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path))
    message = r"^no space left on the disk of .*entry: free some( or set ZWEAVE_CACHE to another disk)?$"
    with pytest.raises(ZweaveError, match=message) as caught, write(tmp_path / "entry"):
        raise error
    assert ("ZWEAVE_CACHE" in str(caught.value)) is in_cache
    assert os.listdir(tmp_path) == []


def test_other_errors_pass(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "entry"):
        (tmp_path / "absent").read_text()


def test_a_link_stays_one_and_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_device_is_written_and_not_replaced():
    before = os.stat(os.devnull)
    write_text(Path(os.devnull), "text")
    assert os.stat(os.devnull).st_rdev == before.st_rdev and Path(os.devnull).is_char_device()


FULL = Path("/dev/full")


def figure(path):
    pytest.importorskip("matplotlib")
    write_png(new_figure(1, 1), path)


def training_state(path):
    task = Task("t", "", lambda data: Splits([], []))
    adapter = SimpleNamespace(parameters=lambda: [torch.nn.Parameter(torch.ones(4))], state=dict)
    samples = [Sample("one", " two")]
    Training(SimpleNamespace(adapter=adapter), task, samples, samples, Recipe())._save(path)


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's disk that is always full")
@pytest.mark.parametrize("write", [partial(write_text, text="text"), figure, training_state])
def test_every_writer_says_that_the_disk_is_full(write):
    with pytest.raises(ZweaveError, match="no space left on the disk of /dev/full: free some"):
        write(FULL)
