"""csrc/embed: the kernels without Python or PyTorch, built by its Makefile, against the ops and float64."""

import ctypes
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zweave.kernels import cpu_isa, linear, pack, svf_delta_linear, svf_linear

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
RANDOM = torch.Generator().manual_seed(0)


class Matrix(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_uint8),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("panels", ctypes.c_void_p),
    ]


class Input(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p)] + [(n, ctypes.c_int64) for n in ("stride", "tokens", "width")]


class Output(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64)]


class Scales(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("stride", "slots", "width")),
        ("slot", ctypes.c_void_p),
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make -C csrc/embed` gives: the library and the example."""
    directory = tmp_path_factory.mktemp("embed")
    command = [
        "make",
        "-s",
        "-j2",
        "-C",
        str(ROOT / "csrc/embed"),
        f"BUILD={directory}",
        "CXXFLAGS=-O3 -Werror",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def library(built: Path) -> ctypes.CDLL:
    shared = built / "shim.so"
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-fopenmp", f"-I{ROOT / 'csrc'}", "-o", str(shared)]
    sources = [str(ROOT / "tests/csrc/embed_shim.cpp"), str(built / "libzweave.a")]
    done = subprocess.run([*command, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(shared))
    library.shim_packed_bytes.restype = ctypes.c_int64
    library.shim_packed_bytes.argtypes = [ctypes.c_uint8, ctypes.c_int64, ctypes.c_int64]
    for name in ("instruction_set", "pack", "linear", "svf_linear", "svf_delta_linear"):
        getattr(library, f"shim_{name}").restype = ctypes.c_char_p
    return library


@dataclass(frozen=True)
class Embedded:
    """The C++ functions on tensors."""

    library: ctypes.CDLL
    threads: int = 2

    def pack(self, weight: Tensor) -> tuple[Matrix, Tensor]:
        """The matrix, and the tensor that holds its panels, as bytes."""
        rows, columns = weight.shape
        dtype, stride = DTYPES[weight.dtype], weight.stride(0)
        nbytes = self.library.shim_packed_bytes(dtype, rows, columns)
        held = torch.full((nbytes + 64,), 255, dtype=torch.uint8)
        panels = held[-held.data_ptr() % 64 :][:nbytes]
        matrix = Matrix()
        integers = map(ctypes.c_int64, (stride, rows, columns))
        pointers = ctypes.c_void_p(weight.data_ptr()), *integers, ctypes.c_void_p(panels.data_ptr())
        error = self.library.shim_pack(ctypes.byref(matrix), ctypes.c_uint8(dtype), *pointers)
        assert error is None, error
        return matrix, panels

    def call(
        self,
        name: str,
        x: Tensor,
        weights: list[Matrix],
        out_features: int,
        table: Tensor | None = None,
        slot: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The output, which lies amid NaN that is checked to be untouched; ValueError with what is thrown."""
        around = torch.full((len(x) + 2, out_features + 8), float("nan"), dtype=x.dtype)
        y = around[1:-1, 4:-4]
        arguments: list[ctypes.Structure] = [Input(x.data_ptr(), x.stride(0), len(x), x.shape[1]), *weights]
        if table is not None:
            slots = (len(table), table.shape[1], slot.data_ptr())
            arguments.append(Scales(table.data_ptr(), table.stride(0), *slots))
        error = getattr(self.library, f"shim_{name}")(
            *map(ctypes.byref, arguments),
            ctypes.c_void_p(bias.data_ptr() if bias is not None else None),
            ctypes.byref(Output(y.data_ptr(), y.stride(0))),
            ctypes.c_int(self.threads),
        )
        if error is not None:
            raise ValueError(error.decode())
        outside = torch.cat([around[[0, -1]].flatten(), around[:, :4].flatten(), around[:, -4:].flatten()])
        assert outside.isnan().all()
        return y.clone()


@pytest.fixture(scope="module")
def embedded(library: ctypes.CDLL) -> Embedded:
    return Embedded(library)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=RANDOM).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (63, 199, 31), (199, 63, 63), (16, 1024, 512), (600, 576, 300)], ids=str
)
@pytest.mark.parametrize("tokens", [0, 1, 5, 130])
def test_has_the_bits_of_the_ops(embedded, guarded, poisoned_outputs, dtype, shape, tokens) -> None:
    M, N, R = shape
    x, bias = guarded(normal(tokens, N, dtype=dtype)), normal(M, dtype=dtype)
    w, vt, u = normal(M, N, dtype=dtype), normal(R, N, dtype=dtype), normal(M, R, dtype=dtype)
    table = guarded(normal(4, R))
    slot = torch.arange(tokens, dtype=torch.int32) % 3 + (tokens > 5)
    (mw, w_panels), (mvt, vt_panels), (mu, u_panels) = map(embedded.pack, (w, vt, u))
    for panels, weight in ((w_panels, w), (vt_panels, vt), (u_panels, u)):
        assert torch.equal(panels, pack(weight).data.flatten().view(torch.uint8))
    w, vt, u = map(pack, (w, vt, u))
    for given in (None, bias):
        assert torch.equal(embedded.call("linear", x, [mw], M, bias=given), linear(x, w, given))
        found = embedded.call("svf_linear", x, [mvt, mu], M, table, slot, given)
        assert torch.equal(found, svf_linear(x, vt, u, table, slot, given))
        found = embedded.call("svf_delta_linear", x, [mw, mvt, mu], M, table, slot, given)
        assert torch.equal(found, svf_delta_linear(x, w, vt, u, table, slot, given))


def test_does_not_depend_on_threads(library) -> None:
    x, table, slot = normal(70, 300), normal(3, 200), torch.arange(70, dtype=torch.int32) % 3
    one = Embedded(library, threads=1)
    weights = [one.pack(weight) for weight in (normal(200, 300), normal(333, 200))]
    matrices = [matrix for matrix, _ in weights]
    results = [
        Embedded(library, threads).call("svf_linear", x, matrices, 333, table, slot) for threads in (1, 3, 0)
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_base_takes_w_alone(embedded) -> None:
    x, w = normal(3, 40), normal(24, 40)
    weights = [embedded.pack(weight) for weight in (w, normal(8, 40), normal(24, 8))]
    matrices = [matrix for matrix, _ in weights]
    table, slot = torch.full((2, 8), float("nan")), torch.zeros(3, dtype=torch.int32)
    table[1] = 1
    slot[1] = 1
    found = embedded.call("svf_delta_linear", x, matrices, 24, table, slot)
    assert torch.equal(found[[0, 2]], linear(x, pack(w))[[0, 2]]) and found.isfinite().all()


REFUSED: dict[str, tuple[Callable[[Embedded], object], str]] = {
    "width": (lambda e: call(e, N=41), "svf_linear: x does not fit the matrices"),
    "rank": (lambda e: call(e, R=9), "svf_linear: vt, u and the scales must share their rank"),
    "table": (
        lambda e: call(e, table=normal(3, 7)),
        "svf_linear: vt, u and the scales must share their rank",
    ),
    "dtype": (lambda e: call(e, dtype=torch.bfloat16), "svf_linear: the matrices must share their dtype"),
    "slot": (lambda e: call(e, slot=3), "svf_linear: a token's slot lies outside the scales"),
    "negative": (lambda e: call(e, slot=-1), "svf_linear: a token's slot lies outside the scales"),
    "outputs": (lambda e: call(e, M=8), "svf_linear: rows of x or y overlap"),
}


def call(
    e: Embedded,
    N: int = 40,
    R: int = 8,
    M: int = 24,
    slot: int = 0,
    dtype: torch.dtype = torch.float32,
    table: Tensor | None = None,
) -> Tensor:
    """svf_linear of x [2, 40], vt [8, N], u [24, R] and a table [3, 8], u of `dtype`, y of rows of M + 8."""
    weights = [e.pack(normal(8, N)), e.pack(normal(24, R, dtype=dtype))]
    slots = torch.full((2,), slot, dtype=torch.int32)
    matrices = [matrix for matrix, _ in weights]
    return e.call("svf_linear", normal(2, 40), matrices, M, normal(3, 8) if table is None else table, slots)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(embedded, name) -> None:
    wrong, message = REFUSED[name]
    assert call(embedded).isfinite().all()
    with pytest.raises(ValueError) as raised:
        wrong(embedded)
    assert str(raised.value) == message


def test_the_library_needs_no_torch(built, library) -> None:
    assert library.shim_instruction_set().decode() == cpu_isa()
    listed = subprocess.run(["ldd", built / "example"], capture_output=True, text=True, check=True).stdout
    needed = [line.split()[0] for line in listed.splitlines()]  # the addresses may hold "c10", too
    assert needed and not any(word in name for name in needed for word in ("torch", "c10", "python"))


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512_vnni", "avx512", "amx"])
def test_the_example(built, isa) -> None:
    done = run_example(built, isa)
    if "does not support" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    first, *lines = done.stdout.splitlines()
    assert first == isa and len(lines) == 6
    tokens, N, M, R = 3, 40, 24, 24
    w, vt, u = numbers(3, M, N), numbers(5, R, N), numbers(7, M, R)
    x, table, bias = numbers(11, tokens, N), numbers(13, 3, R), numbers(2, M)
    factored = x @ vt.T * table[[0, 2, 1]] @ u.T
    delta = factored.clone()
    delta[0] = 0
    expected = {"svf_linear": factored + bias, "svf_delta_linear": x @ w.T + delta + bias}
    for name, values in expected.items():
        rows = [list(map(float, line.split()[1:])) for line in lines if line.split()[0] == name]
        torch.testing.assert_close(torch.tensor(rows, dtype=torch.float64), values, rtol=1e-5, atol=1e-5)


def test_an_unknown_instruction_set_ends_the_example_with_a_line(built) -> None:
    done = run_example(built, "sse9")
    assert done.returncode == 1
    assert done.stderr == "ZWEAVE_CPU_ISA is 'sse9': use scalar, avx2, avx512_vnni, avx512 or amx\n"


def run_example(built: Path, isa: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ZWEAVE_CPU_ISA": isa}
    return subprocess.run([built / "example"], env=environment, capture_output=True, text=True)


def numbers(step: int, *shape: int) -> Tensor:
    """What the example's function of this name gives."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * step % 17 - 8) / 8).double().view(shape)
