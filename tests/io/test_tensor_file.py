"""Safetensors files that are written: the same bytes from the same values."""

from pathlib import Path

import torch
from safetensors import safe_open

from zweave.io.tensor_file import save_tensors


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
