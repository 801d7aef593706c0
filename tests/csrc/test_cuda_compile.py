"""The CUDA sources without a GPU: every kernel is compiled, and its use of registers and memory looked at."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
# Shared memory that one block may use, in bytes (CUDA programming guide, technical specifications).
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90a": 227 * 1024, "sm_100a": 227 * 1024}
# Two blocks of 256 threads share the 65536 registers of a processor.
REGISTERS = 128
# Rows (one to a block of four), tiles of tokens and terms, and one row of tiles for operands out of line.
INSTANCES = (3 + 1) * 3 * 2

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")


def toolkit() -> Path | None:
    """The CUDA toolkit's folder."""
    if not shutil.which("nvcc"):
        return None
    steps = subprocess.run(["nvcc", "--dryrun", "-cubin", "none.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", steps, re.MULTILINE)
    return Path(top[1]) if top else None


@pytest.fixture(scope="module")
def shared_bytes(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Shared memory of a block; all instances ask for the same."""
    folder = tmp_path_factory.mktemp("traits")
    (folder / "traits.cpp").write_text(
        '#include <cstdio>\n#include "cuda/decode_traits.h"\n'
        "using namespace zweave::cuda;\n"
        "static_assert(DecodeTraits<1, 1, 1, true>::kSharedBytes == DecodeTraits<4, 4, 2, true>::kSharedBytes);\n"
        "static_assert(DecodeTraits<1, 1, 1, true>::kSharedBytes == DecodeTraits<2, 2, 2, true>::kSharedBytes);\n"
        'int main() { std::printf("%d", DecodeTraits<1, 1, 1, true>::kSharedBytes); }\n'
    )
    command = ["g++", "-std=c++20", f"-I{CSRC}", "-o", folder / "traits", folder / "traits.cpp"]
    subprocess.run(command, check=True)
    return int(subprocess.check_output([folder / "traits"]))


@needs_nvcc
@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_every_instance_compiles_without_spills(arch, shared_bytes, tmp_path) -> None:
    ptx, cubin = tmp_path / "decode.ptx", tmp_path / "decode.cubin"
    source = CSRC / "cuda" / "decode_launch.cu"
    flags = ["-std=c++20", "-O3", f"-arch={arch}", f"-I{CSRC}"]
    subprocess.run(["nvcc", *flags, "-ptx", "-o", ptx, source], check=True)
    ptxas = toolkit() / "bin" / "ptxas"
    report = subprocess.run(
        [ptxas, "-v", f"-arch={arch}", "-o", cubin, ptx], capture_output=True, text=True, check=True
    )
    kernels = re.findall(
        r"Compiling entry function '\w*DecodeTraitsI(\w+?)EEEEv.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        report.stderr,
        re.DOTALL,
    )
    assert len(kernels) == INSTANCES
    for name, *used in kernels:
        row_warps, token_tiles, terms, aligned = re.findall(r"L[ib](\d)", name)
        stack, stores, loads, registers = map(int, used)
        print(
            f"{arch} {16 * int(row_warps)} outputs x {8 * int(token_tiles)} tokens, {terms} term(s), "
            f"aligned {aligned}: {registers} registers, {shared_bytes} bytes of shared memory, no spills"
        )
        assert stack == stores == loads == 0, name
        assert registers <= REGISTERS, name
    assert shared_bytes <= SHARED_MEMORY[arch]
    code = ptx.read_text()
    assert "cp.async.cg.shared.global" in code and "mma.sync.aligned.m16n8k16" in code
    # Only sm_90 and newer start a launch before the one ahead of it has ended.
    assert ("griddepcontrol.wait" in code) == (int(re.search(r"\d+", arch)[0]) >= 90)


@needs_nvcc
def test_the_entry_points_compile_against_torch() -> None:
    torch_headers = Path(torch.__file__).parent / "include"
    if not (torch_headers / "c10" / "cuda" / "CUDAStream.h").exists():
        pytest.skip("needs torch's CUDA headers")
    # A CPU build of torch lacks the header that this macro leaves out; nothing here depends on it.
    flags = [
        "-std=c++20",
        "-fsyntax-only",
        "-Wall",
        "-Werror",
        "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE",
        f"-I{CSRC}",
    ]
    for folder in (
        torch_headers,
        torch_headers / "torch" / "csrc" / "api" / "include",
        toolkit() / "include",
    ):
        flags += ["-isystem", str(folder)]
    subprocess.run(["g++", *flags, CSRC / "cuda" / "decode.cpp"], check=True)
