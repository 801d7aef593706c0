"""What steps on a GPU are predicted to take: bytes and operations over rates, and a fixed cost a launch.

    decoding  = max(weights / read, operations / rate) + keys and values / attention + products * launch
                + sums of many rows * many_rows + handovers * handover + small kernels * small + rest
    a prompt  = max(weights / read, operations / rate) + activations / read + products * launch + small * small

Weights on a grid take max(bytes / read, instructions / issue), by the instructions of the kernel's loop.

Rates and costs of launches were fitted to single products, measured one at a time. What a whole step takes was never
measured: docs/gpu.md says what is assumed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from zweave.kernels import GRID_FORMS, GridKind, LinearMode

from .plan import MatrixPlan, Plan

# Rows from which on products cost more than reading their weights.
MANY_ROWS = 17
# Of a layer of decoding: two norms, rope and store, attention and the sum of its splits.
_SMALL_KERNELS = 5
# Of a layer: launches, where q, k and v are one product, gate and up another.
_PRODUCTS = 4
# Of a layer: sums one after the other. That of a delta's h is made beside W x.
_SUMS = {LinearMode.DENSE: 4, LinearMode.DELTA: 4, LinearMode.FACTORED: 8}
# Of a layer: products whose programs wait for others of their launch.
_HANDOVERS = {LinearMode.DELTA: 4, LinearMode.FACTORED: 4}
# Of a layer of a prompt by a library: products, where k and v are one batch and gate and up another, and kernels
# between them.
_LIBRARY_PRODUCTS = {LinearMode.DENSE: 4, LinearMode.DELTA: 14, LinearMode.FACTORED: 9}
_BETWEEN = {LinearMode.DENSE: 0, LinearMode.DELTA: 4, LinearMode.FACTORED: 4}
# Instructions of each of four warps for 4,096 weights on a grid, counted in sm_90 code, for 16 and for 64 tokens.
_GRID_INSTRUCTIONS: Mapping[GridKind, tuple[int, int]] = {
    "Q4_0": (201, 255),
    "Q4_1": (269, 368),
    "Q4_K": (269, 368),
    "Q8_0": (250, 301),
}


class Decoder(Protocol):
    """The sizes of a model that a prediction needs; a `ModelConfig` has them."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Rates of a device and costs of launches.

    read, integer_read: bytes a second of weights, and of integer ones, which conversion binds
    library_read: the same of a library's products of many rows
    attention: bytes a second of keys and values
    rate, library_rate: operations a second of our products of bf16, and of a library's
    launch: seconds that a product takes besides reading
    dependent_launch: the same where it is launched before the kernel ahead of it ends
    issue: 4,096 weights times instructions of a warp for them, a second: 132 SMs of 1.755 GHz that start four a clock,
        times .49, what int8 reached of such a count when it was measured
    many_rows: further seconds of a sum of ours of many rows, which its splits take
    library_launch: seconds that a library's product of a prompt takes besides its operations
    handover: seconds that a product takes besides whose U waits for h; assumed
    small: seconds of a kernel that reads little
    rest: seconds of a step's embedding and sampling
    ideal_rest: the same of a server without a kernel for sampling
    """

    name: str
    read: float
    library_read: float
    attention: float
    integer_read: float = 2.42e12
    rate: float = 557e12
    library_rate: float = 774e12
    issue: float = 4096 * 132 * 1.755e9 * 0.49
    launch: float = 5.7e-6
    dependent_launch: float = 2.5e-6
    many_rows: float = 2.4e-6
    library_launch: float = 3.7e-6
    handover: float = 1e-6
    small: float = 2.5e-6
    rest: float = 0.08e-3
    ideal_rest: float = 0.15e-3


DEVICES = (DeviceRates("H200", 4.35e12, 4.03e12, 3.9e12), DeviceRates("H100", 2.92e12, 2.86e12, 2.7e12))


def rates_of(device_name: str | None) -> DeviceRates:
    """The rates of a device; of one that is not known those of an H200, by whose name they go."""
    return next((device for device in DEVICES if device.name in (device_name or "")), DEVICES[0])


@dataclass(frozen=True, slots=True)
class StepShape:
    """rows: sequences, each of `context` tokens with the one that is computed.

    experts: row i is under expert i mod `experts`; 0 for the base model
    """

    rows: int
    context: int
    experts: int


@dataclass(frozen=True, slots=True)
class Weights:
    """What the adapted matrices of a model read in a mode.

    elements: numbers of weights that are not integers
    integers: numbers of weights that are
    grids: numbers of weights on each kind of grid
    converted: matrices that are not plain
    columns: of the slots' tables
    """

    elements: int
    integers: int
    grids: Mapping[GridKind, int]
    converted: int
    columns: int

    @classmethod
    def of(cls, plan: Plan, mode: LinearMode) -> "Weights":
        elements, integers, converted, columns = 0, 0, 0, 0
        grids: Counter[GridKind] = Counter()
        for matrix in plan.values():
            rank = components(matrix, mode)
            columns += rank
            if matrix.format and rank:
                integers += rank * sum(matrix.shape)
                converted += 2
            for kind, count in _values(matrix, mode):
                if kind is None:
                    elements += count
                else:
                    grids[kind] += count
                    converted += 1
        return cls(elements, integers, grids, converted, columns)

    @property
    def operations(self) -> float:
        """Of a token."""
        return 2.0 * (self.elements + self.integers + sum(self.grids.values()))

    def with_head(self, size: int, grid: GridKind | None) -> "Weights":
        """With a head of so many weights."""
        if grid is None:
            return replace(self, elements=self.elements + size)
        return replace(self, grids=Counter(self.grids) + Counter({grid: size}))


def _values(matrix: MatrixPlan, mode: LinearMode) -> Iterator[tuple[GridKind | None, int]]:
    """Kind of grid, or none, and number of the weights that a matrix reads in a mode, without integers."""
    (M, N), rank = matrix.shape, components(matrix, mode)
    if mode != LinearMode.FACTORED:
        yield matrix.grid, M * N
    if matrix.factor_grids:
        on_u, on_vt = matrix.factor_grids
        yield on_u, rank * M
        yield on_vt, rank * N
    elif not matrix.format:
        yield None, rank * (M + N)


def grid_bytes(grids: Mapping[GridKind, int]) -> float:
    """Bytes of weights on grids."""
    return sum(count * GRID_FORMS[kind].bytes for kind, count in grids.items())


def grid_instructions(grids: Mapping[GridKind, int], rows: int) -> float:
    """Instructions of a warp, in units of 4,096 weights, that products of so many rows take."""
    return float(sum(count * _GRID_INSTRUCTIONS[kind][rows >= MANY_ROWS] for kind, count in grids.items()))


def components(matrix: MatrixPlan, mode: LinearMode) -> int:
    """Components that a matrix reads in a mode."""
    return {LinearMode.DELTA: matrix.delta_rank, LinearMode.FACTORED: matrix.rank}.get(mode, 0)


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step of decoding reads and launches.

    weights, integers, cache: bytes of weights with the experts' rows, of integer weights, and of keys and values
    grids: bytes of weights on grids, and instructions that they take, see `DeviceRates.issue`
    operations: of the products
    products, small: kernels
    sums: of the products, one after the other
    handovers: products that wait for a part of themselves
    rows: of the step
    is_ideal: whether the step is that of the ideal server
    """

    weights: float
    integers: float
    grids: tuple[float, float]
    cache: float
    operations: float
    products: int
    sums: int
    handovers: int
    small: int
    rows: int
    is_ideal: bool

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        plan: Plan,
        mode: LinearMode,
        shape: StepShape,
        itemsize: int,
        is_ideal: bool = False,
        head_grid: GridKind | None = None,
    ) -> "StepCost":
        """Of a step with weights and cache of so many bytes a number.

        is_ideal: a dense step whose products are a library's, and whose kernels are no dependent launches
        head_grid: on which the head lies, if on any
        """
        adapted = Weights.of(plan, mode)
        read = adapted.with_head(decoder.vocab_size * decoder.hidden_size, head_grid)
        position = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim
        # The gate is a kernel of its own in an ideal step, and where weights are integers or on a grid.
        own_gate = is_ideal or read.integers > 0 or bool(adapted.grids)
        return cls(
            weights=read.elements * itemsize + 4.0 * shape.experts * read.columns,
            integers=float(read.integers),
            grids=(grid_bytes(read.grids), grid_instructions(read.grids, shape.rows)),
            cache=float(shape.rows * shape.context * position * itemsize),
            operations=shape.rows * read.operations,
            products=_PRODUCTS * decoder.num_layers + 1,
            sums=_SUMS[mode] * decoder.num_layers + 1,
            handovers=_HANDOVERS.get(mode, 0) * decoder.num_layers,
            small=(_SMALL_KERNELS + own_gate) * decoder.num_layers,
            rows=shape.rows,
            is_ideal=is_ideal,
        )

    @property
    def moved(self) -> float:
        """Bytes that must move."""
        return self.weights + self.integers + self.grids[0] + self.cache

    def seconds(self, rates: DeviceRates, dependent: bool = True) -> float:
        """Predicted.

        dependent: whether our kernels are launched as dependent ones; the ideal's are not
        """
        many = self.rows >= MANY_ROWS
        launch = rates.dependent_launch if dependent and not self.is_ideal else rates.launch
        read, rate, rest = rates.read, rates.rate, rates.rest
        if self.is_ideal:
            read, rate, rest = (
                rates.library_read if many else rates.read,
                rates.library_rate,
                rates.ideal_rest,
            )
        grids = max(self.grids[0] / read, self.grids[1] / rates.issue)
        reading = self.weights / read + self.integers / rates.integer_read + grids
        products = max(reading, self.operations / rate) + self.products * launch
        products += self.handovers * rates.handover
        products += self.sums * rates.many_rows if many and not self.is_ideal else 0.0
        return products + self.cache / rates.attention + self.small * rates.small + rest


@dataclass(frozen=True, slots=True)
class PromptCost:
    """What the products of a prompt's layers read, compute and launch.

    weights: bytes
    activations: bytes that are read and written between the products of a linear
    operations: of the products
    products, small: kernels
    sums: of our products
    by_library: whether the products are a library's, or ours as in a step of decoding
    """

    weights: float
    activations: float
    operations: float
    products: int
    sums: int
    small: int
    by_library: bool

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        plan: Plan,
        mode: LinearMode,
        tokens: int,
        itemsize: int,
        by_library: bool = True,
    ) -> "PromptCost":
        read = Weights.of(plan, mode)
        outputs = sum(matrix.shape[0] for matrix in plan.values())
        # Slots' scales; a delta is added to y where it lies.
        passes = {LinearMode.FACTORED: 2 * read.columns, LinearMode.DELTA: 2 * read.columns + 2 * outputs}
        # What is no plain weight becomes one before the product.
        written = read.integers + sum(read.grids.values())
        return cls(
            weights=(read.elements + 2.0 * written) * itemsize + read.integers + grid_bytes(read.grids),
            activations=float(tokens * itemsize * passes.get(mode, 0)) if by_library else 0.0,
            operations=tokens * read.operations,
            products=(_LIBRARY_PRODUCTS[mode] if by_library else _PRODUCTS) * decoder.num_layers,
            sums=0 if by_library else _SUMS[mode] * decoder.num_layers,
            small=_BETWEEN[mode] * decoder.num_layers + read.converted if by_library else 0,
            by_library=by_library,
        )

    def seconds(self, rates: DeviceRates) -> float:
        """Predicted."""
        launch = rates.library_launch if self.by_library else rates.launch
        rate = rates.library_rate if self.by_library else rates.rate
        products = max(self.weights / rates.read, self.operations / rate) + self.products * launch
        products += self.sums * rates.many_rows
        return products + self.activations / rates.read + self.small * rates.small
