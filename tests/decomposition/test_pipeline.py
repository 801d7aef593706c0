"""The pipeline of an accelerator, run on the CPU: the same entry in the cache, bounded, resumed on either device."""

import threading

import pytest
import torch

import zweave.decomposition.decomposition as module_under_test
import zweave.decomposition.pipeline as pipeline
from zweave.checkpoint import Checkpoint
from zweave.decomposition import decompose
from zweave.decomposition.solver import on_device
from zweave.errors import ZweaveError
from zweave.io.progress import silent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decompositions"


@pytest.fixture
def checkpoint(tiny_model):
    return Checkpoint(tiny_model("llama"))


@pytest.fixture
def device(monkeypatch):
    """The name of a device whose part CPU tensors play."""
    monkeypatch.setattr(module_under_test, "parse_device", torch.device)
    monkeypatch.setattr(module_under_test, "on_device", lambda device: on_device(torch.device("cpu")))
    return "cuda"


class StopError(Exception):
    pass


def stop_at_5(stage, done, total):
    if done == 5:
        raise StopError


def test_the_entry_is_the_cpus(checkpoint, device, cache, monkeypatch):
    reports, emptied = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(reports)))
    found = decompose(checkpoint, progress=lambda *report: reports.append(report), device=device)
    assert [done for _, done, _ in reports] == list(range(15))
    assert reports[0][0] == "decomposing on cuda"
    assert emptied == [15]
    assert {matrix.driver for matrix in found.matrices.values()} == {"gram64"}
    sizes = {path.name: path.stat().st_size for path in (cache / found.digest).glob("*.safetensors")}
    expected = decompose(checkpoint, progress=silent, force=True)
    assert found.digest == expected.digest == checkpoint.digest()
    assert found.names == expected.names and max(found.errors) < max(expected.errors) < 1e-5
    # Names and tensors are the same; the header holds the driver's name.
    for path in (cache / found.digest).glob("*.safetensors"):
        assert abs(sizes.pop(path.name) - path.stat().st_size) < 64
    assert not sizes


@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_a_run_goes_on_on_the_other_device(checkpoint, device, cache, first):
    second = {"cpu": device, device: "cpu"}[first]
    with pytest.raises(StopError):
        decompose(checkpoint, progress=stop_at_5, device=first)
    kept = {path.stem for path in (cache / f"{checkpoint.digest()}.partial").glob("m*.safetensors")}
    assert len(kept) >= 5
    found = decompose(checkpoint, progress=silent, device=second)
    drivers = {"cpu": "gesdd", "cuda": "gram64"}
    for name, matrix in found.matrices.items():
        if name in kept:
            assert matrix.driver == drivers[first]
    assert drivers[second] in {matrix.driver for matrix in found.matrices.values()}
    assert max(found.errors) < 1e-5


def test_one_matrix_is_read_ahead_and_one_written(checkpoint, cache, monkeypatch):
    """A disk that does not write stops the reading, too."""
    go_on, stuck = threading.Event(), threading.Event()
    begun = []

    def counting(source, module, directory):
        begun.append(module)
        if len(begun) == 3:
            stuck.set()
        return read(source, module, directory)

    def blocked(factored, directory):
        go_on.wait(10)
        return write(factored, directory)

    read, write = pipeline.read, pipeline.write
    monkeypatch.setattr(pipeline, "read", counting)
    monkeypatch.setattr(pipeline, "write", blocked)
    cache.mkdir(parents=True)
    made = []
    made_on = on_device(torch.device("cpu"))
    thread = threading.Thread(target=lambda: made.extend(pipeline.pipelined(checkpoint, cache, made_on)))
    thread.start()
    assert stuck.wait(10)
    thread.join(0.2)
    # The first is being written, the second waits for it, the third is read.
    assert len(begun) == 3 and not made
    go_on.set()
    thread.join(10)
    assert [module for module, _ in made] == begun == list(checkpoint.adapted_shapes())


def test_errors_name_the_matrix(checkpoint, device, cache, monkeypatch):
    def full(tall):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    monkeypatch.setattr("zweave.decomposition.solver.DEVICE_DRIVERS", (("full", full),))
    with pytest.raises(ZweaveError, match=r"0\.\S+ cannot be decomposed: .* is out of memory") as raised:
        decompose(checkpoint, progress=silent, device=device)
    assert "\n" not in str(raised.value)
    assert not (cache / checkpoint.digest()).exists()


def test_devices_that_are_not_there_are_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, message in (
        ("abacus", "unknown device 'abacus': use 'cpu' or 'cuda'"),
        ("meta", "device 'meta' is not supported"),
        ("cuda", "no CUDA device is available"),
    ):
        with pytest.raises(ZweaveError, match=message):
            decompose(checkpoint, device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ZweaveError, match="there is no cuda:1: this torch sees 1 CUDA devices"):
        decompose(checkpoint, device="cuda:1")


def test_workers_are_the_cpus(checkpoint, device):
    with pytest.raises(ZweaveError, match="cuda decomposes one matrix at a time"):
        decompose(checkpoint, device=device, workers=2)
