"""What a product costs on this machine: measured once, cached, and used to choose between modes."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zweave.kernels import (
    GRID_FORMS,
    GROUP,
    Grid,
    GridKind,
    LinearMode,
    Packed,
    cpu_isa,
    linear,
    pack,
    pack_grid,
    quantize,
    svf_delta_linear,
)

from ..io.atomic_write import atomic_write
from ..io.cache_dir import cache_dir, disk_errors
from .delta_formats import BYTES, IntegerFormat
from .plan import MatrixPlan

FORMAT = "zweave-cost-3"
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CostModel:
    """A roofline of this machine: a product takes the longer of streaming its weights and its arithmetic.

    bytes_per_second: rate at which weights stream from memory.
    flops_per_second: rate of products of many rows.
    integer_ops_per_second: rate of products of many rows with int8 or int4 weights.
    grid_ops_per_second: with weights on a grid.
    call_seconds: overhead of a call; a fused step has none.
    value_bytes: bytes of a weight that is not an integer.
    """

    bytes_per_second: float
    flops_per_second: float
    integer_ops_per_second: float
    grid_ops_per_second: float
    call_seconds: float
    value_bytes: int

    @classmethod
    def nominal(cls, value_bytes: int) -> "CostModel":
        """The model of two server cores: choices between modes depend only on the ratios of the rates."""
        return cls(3e10, 4e11, 8e11, 3e11, 0.0, value_bytes)

    def product(
        self,
        weights: Numbers | float,
        tokens: Numbers | float,
        format: IntegerFormat | None = None,
        grid: GridKind | None = None,
    ) -> Numbers:
        """Seconds of a product by number of weights and of tokens; 0 without tokens.

        format: of integer weights.
        grid: on which the weights lie.
        """
        value_bytes = BYTES[format] if format else GRID_FORMS[grid].bytes if grid else self.value_bytes
        of_grid = self.grid_ops_per_second if grid else self.flops_per_second
        rate = self.integer_ops_per_second if format else of_grid
        stream = np.asarray(weights) * value_bytes / self.bytes_per_second
        arithmetic = 2 * np.asarray(weights) * tokens / rate
        return np.where(np.asarray(tokens) > 0, np.maximum(stream, arithmetic), 0.0)

    def seconds(
        self,
        mode: LinearMode,
        matrix: MatrixPlan,
        tokens: int,
    ) -> float:
        """Seconds of computing tokens in a mode."""
        (M, N), components = matrix.shape, matrix.delta_rank
        if mode == LinearMode.DELTA and matrix.format:
            integers = self.product(components * (M + N), tokens, matrix.format)
            return float(self.product(M * N, tokens, grid=matrix.grid) + integers)
        if mode == LinearMode.DENSE:
            return float(self.product(M * N, tokens, grid=matrix.grid))
        if mode == LinearMode.FACTORED and matrix.factor_grids:
            u, vt = matrix.factor_grids
            seconds = (
                self.product(M * matrix.rank, tokens, grid=u),
                self.product(matrix.rank * N, tokens, grid=vt),
            )
            return float(sum(seconds))
        weights = {
            LinearMode.MERGED: M * N,
            LinearMode.DELTA: M * N + components * (M + N),
            LinearMode.FACTORED: matrix.rank * (M + N),
        }[mode]
        return float(self.product(weights, tokens))


def cost_model(dtype: torch.dtype) -> CostModel:
    """The model of this machine and its number of threads: cached, or measured in about a second.

    Raises ZweaveError if the cache cannot be written.
    """
    path = _path(dtype)
    known = _read(path)
    if known is not None:
        return known
    measured = measure(dtype)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **asdict(measured)}))
    return measured


@torch.inference_mode()
def measure(dtype: torch.dtype, size: int = 2048, bytes_to_rotate: int = 96 << 20) -> CostModel:
    """Times products of one row, which stream weights, products of many rows, and empty calls."""
    value_bytes = dtype.itemsize
    copies = max(2, bytes_to_rotate // (size * size * value_bytes))
    weights = [pack(torch.full((size, size), 0.01, dtype=dtype)) for _ in range(copies)]
    one, many = torch.ones(1, size, dtype=dtype), torch.ones(192, size, dtype=dtype)
    small, row = pack(torch.ones(16, 16, dtype=dtype)), torch.ones(1, 16, dtype=dtype)
    # An integer delta beside a tiny W: 16 outputs for `size` components.
    small_w = pack(torch.full((16, size), 0.01, dtype=dtype))
    factor, factor_u = (pack(quantize(torch.full(s, 0.01), "int8")) for s in ((size, size), (16, size)))
    delta, slot = torch.ones(2, size), torch.ones(len(many), dtype=torch.int32)
    streaming = _best(lambda: [linear(one, weight) for weight in weights]) / copies
    multiplying = _best(lambda: linear(many, weights[0]))
    adapted = _best(lambda: svf_delta_linear(many, small_w, factor, factor_u, delta, slot))
    # Q4_1 stands for all kinds.
    codes = on_grid(torch.ones(size, size), "Q4_1")
    decoding = _best(lambda: linear(many, codes))
    calling = _best(lambda: [linear(row, small) for _ in range(100)]) / 100
    return CostModel(
        bytes_per_second=size * size * value_bytes / streaming,
        flops_per_second=2 * len(many) * size * size / multiplying,
        integer_ops_per_second=2 * len(many) * size * (size + 16) / adapted,
        grid_ops_per_second=2 * len(many) * size * size / decoding,
        call_seconds=calling,
        value_bytes=value_bytes,
    )


def on_grid(weight: Tensor, grid: GridKind | None) -> Packed:
    """A packed matrix to be timed: these weights, or codes of their shape on a grid."""
    if grid is None:
        return pack(weight)
    form, (M, N) = GRID_FORMS[grid], weight.shape
    numbers = torch.full((M, N // GROUP), 0.01, dtype=form.number)
    codes = (weight.float() * 40).clamp(0, 15).to(torch.int8)
    return pack_grid(Grid(codes, numbers, numbers if form.has_minimum else None, form.bits))


def _best(run: Callable[[], object], rounds: int = 9) -> float:
    """Seconds of the fastest run, so that no other load of the machine is cached."""
    seconds = []
    run()
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _path(dtype: torch.dtype) -> Path:
    name = f"{_processor()}-{torch.get_num_threads()}-{cpu_isa()}-{str(dtype).removeprefix('torch.')}"
    safe = "".join(c if c.isalnum() or c == "-" else "_" for c in name)
    return cache_dir() / "cost" / f"{safe}.json"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "cpu"


def _read(path: Path) -> CostModel | None:
    """The cached model; None, so that it is measured again, unless the file holds one of this format."""
    try:
        values = json.loads(path.read_text())
        if values.pop("format") != FORMAT:
            return None
        model = CostModel(**values)
        return model if min(asdict(model).values()) > 0 else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
