"""Supports: what they are called, what they allow, and what they refuse."""

import numpy as np
import pytest
import torch

from zweave import Expert, ZweaveError
from zweave.experts import Support

UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("text", "rank", "components"),
    [
        ("full", 576, 576),
        ("leading:72", 576, 72),
        ("leading:72", 63, 63),
        ("leading:R/8", 576, 72),
        ("leading:R/8", 5, 1),
        ("sparse:R/4", 199, 49),
        ("sparse:1", 1, 1),
    ],
)
def test_components(text: str, rank: int, components: int) -> None:
    assert Support.parse(text).components(rank) == components


@pytest.mark.parametrize(
    "text", ["", "leading", "leading:0", "leading:-1", "top:R/8", "leading:R/0", "Full", "leading:R"]
)
def test_unknown_forms_are_refused(text: str) -> None:
    with pytest.raises(ZweaveError, match="the support must be full, leading:K"):
        Support.parse(text)


@pytest.mark.parametrize(
    ("text", "differs", "message"),
    [
        ("leading:3", [0, 2], None),
        ("leading:3", [3], "allows 3 leading components and z uses 4"),
        ("leading:R/4", [1], None),
        ("leading:R/4", [4], "allows 4 leading components and z uses 5"),
        ("sparse:2", [3, 15], None),
        ("sparse:2", [0, 3, 15], "allows 2 components and z uses 3"),
    ],
)
def test_an_expert_keeps_to_its_support(text: str, differs: list[int], message: str | None) -> None:
    z = torch.ones(16)
    z[differs] = 1.01
    if message is None:
        Support.parse(text).check(UP, z.numpy().astype(np.float32))
        assert Expert(z={UP: z}, support=text).support == text
        return
    with pytest.raises(ZweaveError, match=f"{UP}: the support {message}"):
        Expert(z={UP: z}, support=text)


def test_the_file_keeps_the_support(tmp_path) -> None:
    z = torch.ones(16)
    z[:2] = 0.9
    Expert(z={UP: z}, support="leading:R/8").save(tmp_path / "e.safetensors", half=True)
    assert Expert.load(tmp_path / "e.safetensors").support == "leading:R/8"
