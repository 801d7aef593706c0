"""A converted model keeps the grids that its matrices came on: the values of its float32 weights, to the bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file, save_file

from zweave.checkpoint import Checkpoint, resolve_model
from zweave.errors import ZweaveError

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def directory(
    gguf_model: Callable[..., Path],
    write_gguf: Callable[..., Path],
    converted: Callable[..., Path],
    tmp_path: Path,
) -> Callable[..., Path]:
    """`directory(kind, name="a")`: a converted model whose matrices are of a type."""

    def make(kind: Type | None, name: str = "a") -> Path:
        source = gguf_model(intermediate_size=64, tie_word_embeddings=True)
        return converted(write_gguf(tmp_path / f"{name}.gguf", source, kind), tmp_path / name)

    return make


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q8_0], ids=lambda kind: kind.name)
def test_grids_have_the_values_of_the_weights(kind: Type, directory: Callable[..., Path]) -> None:
    checkpoint = Checkpoint(directory(kind))
    matrices = [name for name in checkpoint.names() if checkpoint.tensor(name).dim() == 2]
    assert checkpoint.grid_kinds == dict.fromkeys(matrices, kind.name)
    assert len(matrices) == 15
    for name in matrices:
        grid = checkpoint.grid(name)
        assert grid is not None and torch.equal(grid.values(), checkpoint.tensor(name))
    assert checkpoint.grid("model.norm.weight") is None


@pytest.mark.parametrize("kind", [None, Type.BF16, Type.Q5_1], ids=str)
def test_other_types_lie_on_none(kind: Type | None, directory: Callable[..., Path]) -> None:
    checkpoint = Checkpoint(directory(kind))
    assert checkpoint.grid_kinds == {} and checkpoint.grid(Q) is None


def test_a_directory_of_hugging_face_has_none(tiny_model: Callable[..., Path]) -> None:
    assert Checkpoint(tiny_model("llama")).grid_kinds == {}


def test_a_file_converted_before_grids_were_kept_gets_them(
    gguf_model: Callable[..., Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "a.gguf", gguf_model(intermediate_size=64), Type.Q4_1)
    first = resolve_model(path)
    file = first.directory / "model.grids"
    kept, weights = file.read_bytes(), (first.directory / "model.safetensors").stat()
    file.unlink()
    assert Checkpoint(first.directory).grid_kinds == {}
    again = resolve_model(path)
    assert again.directory == first.directory and again.grid_kinds == first.grid_kinds
    assert file.read_bytes() == kept
    assert (first.directory / "model.safetensors").stat() == weights


def _rename(tensors: dict[str, Any], kinds: str) -> tuple[dict[str, Any], dict[str, str]]:
    renamed = {name.replace("q_proj", "x_proj"): values for name, values in tensors.items()}
    return renamed, {"format": "zweave-grids-1", "kinds": kinds.replace("q_proj", "x_proj")}


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any], str], tuple[dict[str, Any], dict[str, str]]]]] = {
    "no metadata": ("is no file of grids", lambda tensors, kinds: (tensors, {})),
    "another format": ("is no file of grids", lambda t, k: (t, {"format": "zweave-grids-2", "kinds": k})),
    "unknown kind": (
        "is no file of grids",
        lambda t, k: (t, {"format": "zweave-grids-1", "kinds": k.replace("Q4_1", "Q5_1", 1)}),
    ),
    "kinds no object": (
        "is no file of grids",
        lambda t, k: (t, {"format": "zweave-grids-1", "kinds": "[[]]"}),
    ),
    "another kind": (
        "does not belong to the weights",
        lambda t, k: (t, {"format": "zweave-grids-1", "kinds": k.replace("Q4_1", "Q4_0", 1)}),
    ),
    "unknown matrix": ("does not belong to the weights", _rename),
    "another shape": (
        "does not belong to the weights",
        lambda t, k: ({**t, Q: t[Q][:-1]}, {"format": "zweave-grids-1", "kinds": k}),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_foreign_file_is_told_in_one_line(change: str, directory: Callable[..., Path]) -> None:
    target = directory(Type.Q4_1)
    file, (reason, make) = target / "model.grids", CHANGES[change]
    kinds = ", ".join(f'"{name}": "Q4_1"' for name in load_file(file))
    tensors, metadata = make(load_file(file), "{" + kinds + "}")
    save_file(tensors, file, metadata)
    with pytest.raises(ZweaveError, match=rf"model\.grids {reason}.*: delete it, then pull .* again$"):
        Checkpoint(target)


def test_a_truncated_file_is_told_in_one_line(directory: Callable[..., Path]) -> None:
    target = directory(Type.Q4_1)
    file = target / "model.grids"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ZweaveError, match=r"model\.grids: is not a whole safetensors file \([^\n]*\)$"):
        Checkpoint(target)


def test_grids_of_other_weights_are_told_in_one_line(directory: Callable[..., Path]) -> None:
    target = directory(Type.Q4_1)
    weights = load_file(target / "model.safetensors")
    weights[Q] = np.nextafter(weights[Q], np.float32(9))
    shutil.copy(target / "model.safetensors", target / "was")
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ZweaveError, match=r"model\.grids does not belong to the weights beside it: delete it"
    ):
        Checkpoint(target).grid(Q)
