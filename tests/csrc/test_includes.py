"""The layers of csrc: includes point downwards, and the kernels know nothing of PyTorch."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"

# Top to bottom: a file includes files of its own folder and of those further down.
FOLDERS = (
    "",
    "embed",
    "cpu/decoder",
    "cpu/ops",
    "cpu/isa",
    "cpu/attention",
    "cpu/gemm",
    "cpu/threads",
    "cpu/simd",
    "cuda",
)
# What programs without PyTorch compile, and what a step of the decoder is made of.
WITHOUT_TORCH = (
    "embed/*",
    "cpu/isa/*",
    "cpu/attention/*",
    "cpu/gemm/*",
    "cpu/simd/*",
    "cpu/threads/team.h",
    "cpu/decoder/decoder_config.h",
    "cpu/decoder/decoder_step.h",
    "cpu/decoder/linear_view.*",
    "cuda/*.h",
    "cuda/*.cu*",
)
INCLUDE = re.compile(r'^ *# *include ["<]([^">]+)[">]', re.MULTILINE)


def included() -> dict[str, list[str]]:
    """Every source of csrc, with what it includes."""
    paths = [path for path in CSRC.rglob("*.[ch]*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"}]
    return {str(path.relative_to(CSRC)): INCLUDE.findall(path.read_text()) for path in paths}


INCLUDED = included()


def folder(name: str) -> str:
    return name.rpartition("/")[0]


def test_includes_point_downwards() -> None:
    # Below all folders.
    checks = "checks.h"
    upward = [
        f"{name} includes {other}"
        for name, others in INCLUDED.items()
        for other in others
        if other in INCLUDED
        and other != checks
        and FOLDERS.index(folder(other)) < FOLDERS.index(folder(name))
    ]
    assert not upward


def test_no_circle() -> None:
    try:
        TopologicalSorter(INCLUDED).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_kernels_know_nothing_of_torch() -> None:
    kernels = {str(path.relative_to(CSRC)) for pattern in WITHOUT_TORCH for path in CSRC.glob(pattern)}
    kernels &= INCLUDED.keys()
    while more := {other for name in kernels for other in INCLUDED[name] if other in INCLUDED} - kernels:
        kernels |= more
    of_torch = [
        f"{name} includes {other}"
        for name in sorted(kernels)
        for other in INCLUDED[name]
        if other.startswith(("ATen/", "c10/", "torch/", "pybind11/"))
    ]
    assert not of_torch
