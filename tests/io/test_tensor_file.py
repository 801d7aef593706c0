"""Safetensors files written, the same bytes from the same values, and read."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zweave.errors import ZweaveError
from zweave.io.tensor_file import read_tensors, save_tensors


def test_the_same_values_give_the_same_bytes_whatever_text_is_among_them(tmp_path: Path) -> None:
    metadata = {key: f'{key} é \n\t\x01\x7f\\ "quoted" \u2028 😀' for key in "zyxwvutsrqponm"}
    written = set()
    for _ in range(4):
        save_tensors(tmp_path / "file", {"b": torch.ones(3), "a": torch.arange(4)}, metadata)
        written.add((tmp_path / "file").read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "file", "pt") as handle:
        assert handle.metadata() == metadata
        assert handle.get_tensor("a").tolist() == [0, 1, 2, 3] and handle.get_tensor("b").sum() == 3


def test_tensors_are_read_as_safetensors_itself_does(tmp_path: Path) -> None:
    path, bits = tmp_path / "x", torch.randint(0, 2, (3, 16), dtype=torch.uint8)
    kinds = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    ]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    tensors = {str(kind): bits.view(kind).clone() for kind in kinds}
    save_file(tensors | {"nothing": torch.empty(0, 3), "scalar": torch.tensor(7.0)}, path, {"a": "b"})
    found = read_tensors(path)
    assert found.keys() == {*tensors, "nothing", "scalar"}
    for name, tensor in load_file(path).items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_a_dtype_of_less_than_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    header = b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ZweaveError, match="x: a tensor is of dtype 'F4'"):
        read_tensors(path)
