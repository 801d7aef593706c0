"""Decompositions in the cache: right, whole or absent, resumable, and shared between processes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from zweave.checkpoint import Checkpoint
from zweave.decomposition import Decomposition, decompose, factoring
from zweave.decomposition.decomposition import memory_bound
from zweave.decomposition.svd import working_bytes
from zweave.errors import ZweaveError
from zweave.io.progress import silent
from zweave.io.tensor_file import save_tensors


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decompositions"


@pytest.fixture
def checkpoint(tiny_model):
    return Checkpoint(tiny_model("llama"))


@pytest.fixture
def counted(monkeypatch):
    """Names of the matrices that were really decomposed, in `counted`."""
    names = []

    def save(path, *args, **options):
        names.append(path.name.removesuffix(".safetensors"))
        save_tensors(path, *args, **options)

    monkeypatch.setattr("zweave.decomposition.factoring.save_tensors", save)
    return names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_factors_are_those_of_the_weights(tiny_model, architecture, dtype):
    checkpoint = Checkpoint(tiny_model(architecture, dtype=dtype))
    found = decompose(checkpoint, progress=silent)
    assert found.digest == checkpoint.digest()
    assert found.names == list(checkpoint.config.adapted_shapes())
    assert len(found.errors) == 14 and max(found.errors) < 1e-5
    for name, shape in checkpoint.config.adapted_shapes().items():
        u, sigma, vt = found.factors(name)
        weight = checkpoint.tensor(f"{name}.weight").float()
        assert found.matrices[name].shape == shape == (u.shape[0], vt.shape[1])
        torch.testing.assert_close((u * sigma) @ vt, weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sigma(name), sigma, rtol=0, atol=0)
        exact = torch.linalg.svdvals(weight.double()).float()
        torch.testing.assert_close(sigma, exact, rtol=1e-5, atol=1e-6)


def test_progress_is_reported(checkpoint):
    reports = []
    decompose(checkpoint, progress=lambda *report: reports.append(report), workers=2)
    assert [done for _, done, _ in reports] == list(range(15))
    assert {total for _, _, total in reports} == {14}
    assert "2.0 GiB" in reports[0][0]


def test_second_call_does_nothing(checkpoint, counted, cache):
    first = decompose(checkpoint, progress=silent)
    assert len(counted) == 14
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    second = decompose(checkpoint)
    assert len(counted) == 14 and second.digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == before
    assert not list(cache.glob("*.partial"))


def test_force_makes_it_anew(checkpoint, counted):
    decompose(checkpoint, progress=silent)
    found = decompose(checkpoint, progress=silent, force=True)
    assert len(counted) == 28
    torch.testing.assert_close(found.sigma(found.names[0]), found.factors(found.names[0])[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "damage",
    ["shorter", "emptied", "missing", "other shape", "other type", "pickle"],
)
def test_damaged_files_are_found_on_opening(checkpoint, cache, damage):
    found = decompose(checkpoint, progress=silent)
    path = cache / found.digest / f"{found.names[5]}.safetensors"
    if damage == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    elif damage == "other shape":
        save_file({key: tensor[:4].contiguous() for key, tensor in load_file(path).items()}, path)
    elif damage == "other type":
        save_file({key: tensor.half() for key, tensor in load_file(path).items()}, path)
    else:
        torch.save({"u": 1}, path)
    for reopen in (lambda: Decomposition.open(found.digest), lambda: decompose(checkpoint)):
        with pytest.raises(ZweaveError, match=r"is damaged .*run `zweave decompose MODEL --force`") as raised:
            reopen()
        assert "\n" not in str(raised.value)
    assert max(decompose(checkpoint, progress=silent, force=True).errors) < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(format="zweave-decomposition-0"),
        lambda index: index.update(digest="0" * 64),
        lambda index: index.update(matrices=[]),
        lambda index: index.pop("matrices"),
        lambda index: index["matrices"].update({"../../secret": next(iter(index["matrices"].values()))}),
        lambda index: next(iter(index["matrices"].values())).update(shape="x"),
        lambda index: next(iter(index["matrices"].values())).update(size=1),
        lambda index: next(iter(index["matrices"].values())).update(shape=[3, 4]),
    ],
)
def test_damaged_index_is_found_on_opening(checkpoint, cache, change):
    found = decompose(checkpoint, progress=silent)
    path = cache / found.digest / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ZweaveError, match="is damaged"):
        decompose(checkpoint)


def test_an_index_of_other_matrices_is_noticed(checkpoint, cache):
    found = decompose(checkpoint, progress=silent)
    path = cache / found.digest / "index.json"
    index = json.loads(path.read_text())
    index["matrices"].popitem()
    path.write_text(json.dumps(index))
    with pytest.raises(ZweaveError, match="of other matrices: run `zweave decompose MODEL --force`"):
        decompose(checkpoint)


def test_opening_what_is_not_there():
    with pytest.raises(ZweaveError, match="is not decomposed: run `zweave decompose MODEL`"):
        Decomposition.open("0" * 64)


def test_weights_that_are_not_finite_are_named(tiny_model, tmp_path, cache):
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ZweaveError, match=r"model\.layers\.1\.mlp\.up_proj cannot be decomposed: .* NaN"):
        decompose(Checkpoint(directory), progress=silent)
    assert not (cache / Checkpoint(directory).digest()).exists()


def test_interrupted_work_is_resumed(checkpoint, counted, cache, monkeypatch):
    class StopError(Exception):
        pass

    stopped, save = threading.Event(), factoring.save_tensors

    def stop_at_5(stage, done, total):
        if done == 5:
            stopped.set()
            raise StopError

    def save_of_the_seventh_waits(path, *args, **options):
        if len(counted) == 6:
            stopped.wait(60)
        save(path, *args, **options)

    monkeypatch.setattr(factoring, "save_tensors", save_of_the_seventh_waits)
    with pytest.raises(StopError):
        decompose(checkpoint, progress=stop_at_5, workers=1)
    digest = checkpoint.digest()
    assert not (cache / digest).exists()
    kept = {path.stem for path in (cache / f"{digest}.partial").glob("*.safetensors")}
    assert 5 <= len(kept) <= 7
    monkeypatch.setattr(factoring, "save_tensors", save)
    # One file is spoilt though its size is right, another was cut, and a third never got its name.
    spoilt, cut = sorted(kept)[:2]
    path = cache / f"{digest}.partial" / f"{spoilt}.safetensors"
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))
    path = cache / f"{digest}.partial" / f"{cut}.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    (cache / f"{digest}.partial" / ".x.safetensors.0.tmp").write_bytes(b"half")
    counted.clear()
    found = decompose(checkpoint, progress=silent)
    assert set(counted) == set(found.names) - kept | {spoilt, cut}
    assert max(found.errors) < 1e-5
    assert {path.name for path in (cache / digest).iterdir()} == {
        "index.json",
        *(f"{name}.safetensors" for name in found.names),
    }


def test_full_disk_is_said_before_and_while_writing(checkpoint, cache, monkeypatch):
    usage = shutil.disk_usage(checkpoint.directory)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(ZweaveError, match="MB are needed"):
            decompose(checkpoint, progress=silent)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("zweave.io.tensor_file.save_file", full)
        with pytest.raises(ZweaveError, match="no space left"):
            decompose(checkpoint, progress=silent)
    assert not (cache / checkpoint.digest()).exists()
    assert len(decompose(checkpoint, progress=silent).names) == 14


def test_memory_bound():
    shapes = {"model.layers.0.mlp.up_proj": (14336, 4096), "model.layers.0.self_attn.q_proj": (64, 64)}
    need = working_bytes((14336, 4096))
    assert memory_bound({"a": (64, 64)}) == 2 << 30
    assert memory_bound(shapes) == max(need, 2 << 30)
    assert memory_bound(shapes, need) == need
    with pytest.raises(ZweaveError, match=r"up_proj takes .* GiB.* are allowed: allow more memory"):
        memory_bound(shapes, need - 1)


def test_absurd_settings_are_refused(checkpoint):
    with pytest.raises(ZweaveError, match="at least 1 worker"):
        decompose(checkpoint, workers=0)
    with pytest.raises(ZweaveError, match="allow more memory"):
        decompose(checkpoint, memory=1000)


def test_the_second_of_two_waits(checkpoint, counted, monkeypatch):
    stages = []
    running, go_on = threading.Event(), threading.Event()

    def slow(stage, done, total):
        running.set()
        go_on.wait(10)

    def note(stage, done, total):
        stages.append(stage)
        go_on.set()

    first = threading.Thread(target=decompose, args=(checkpoint,), kwargs={"progress": slow})
    first.start()
    running.wait(10)
    found = decompose(checkpoint, progress=note)
    first.join()
    assert stages == ["waiting for another process that decomposes this model"]
    assert len(counted) == 14 and len(found.names) == 14


CHILD = """
import sys
from zweave.checkpoint import Checkpoint
from zweave.decomposition import decompose
def report(stage, done, total):
    print(done, flush=True)
try:
    decompose(Checkpoint(sys.argv[1]), progress=report, workers=1)
except KeyboardInterrupt:
    sys.exit(130)
"""


def child(directory):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(directory)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_killed_process_leaves_nothing_half(tiny_model, cache, how):
    directory = tiny_model("llama", hidden_size=384, intermediate_size=1024)
    digest = Checkpoint(directory).digest()
    process = child(directory)
    for line in process.stdout:
        if line == "3\n":
            break
    os.kill(process.pid, how)
    start = time.monotonic()
    assert process.wait(10) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert time.monotonic() - start < 5
    assert not (cache / digest).exists()
    done = len(list((cache / f"{digest}.partial").glob("m*.safetensors")))
    assert 3 <= done < 14
    reports = []
    found = decompose(Checkpoint(directory), progress=lambda *report: reports.append(report))
    assert max(found.errors) < 1e-5 and len(found.names) == 14


@pytest.mark.slow
def test_real_model(smollm2):
    found = decompose(Checkpoint(smollm2))
    assert len(found.names) == 210 and max(found.errors) < 5e-6
    assert sum(found.sigma(name).numel() for name in found.names) == 97_920
