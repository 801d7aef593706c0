"""What test files beside this one check, under the Triton that measured devices have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.exhaustive
@pytest.mark.slow
def test_kernels_compile_under_triton_3_6_too() -> None:
    """What the measured devices have. Registers, pipelines and names differ between versions."""
    folder = os.environ.get("ZWEAVE_TRITON_36")
    if folder is None:
        pytest.skip("ZWEAVE_TRITON_36 names no folder with Triton 3.6")
    environment = {name: value for name, value in os.environ.items() if name != "ZWEAVE_TRITON_36"}
    environment["PYTHONPATH"] = folder
    version = subprocess.check_output(
        [sys.executable, "-c", "import triton; print(triton.__version__)"], env=environment, text=True
    )
    assert version.startswith("3.6.")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", Path(__file__).parent],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
