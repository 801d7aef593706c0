"""Per-slot scale, delta and mode tables, indexed by each token's slot."""

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zweave.kernels import LinearMode, empty_in_huge_pages

from ..errors import ZweaveError
from ..planner.delta_formats import STATED_ERROR, IntegerFormat
from ..planner.plan import MatrixPlan, Plan
from .expert import Expert
from .flat_layout import FlatLayout

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The rows of one slot.

    scale: [sum of R] float32.
    delta: [sum of K] float32.
    modes: [matrices] uint8.
    supports: [matrices] int32.
    """

    scale: Tensor
    delta: Tensor
    modes: Tensor
    supports: Tensor

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.scale, self.delta, self.modes, self.supports))


class SlotTables:
    """The rows of the resident experts and mixtures; row 0 is the base model's.

    sigmas: adaptable matrix -> singular values [R], descending, in layer order.
    slots: number of rows, the base model's included.
    device: of `scale` and `delta`.
    plan: which modes each matrix has; all are factored by default.
    max_error: share of a matrix's largest singular value. Components whose sigma * |z - 1| is at most that may be
        left out where this opens a cheaper mode. As U and V are orthonormal, the spectral norm of the difference
        is then at most this share of that of the matrix.

    scale: [slots, sum of R] float32, sigma * z of all matrices side by side.
    delta: [slots, sum of K] float32, sigma * (z - 1) of the leading components that the plan keeps.
    modes: [matrices, slots] uint8, the `LinearMode` of each slot in each matrix, by its own z alone.
    supports: [matrices, slots] int32, number of leading components that each slot adapts.
    """

    def __init__(
        self,
        sigmas: Mapping[str, Tensor],
        slots: int,
        device: torch.device | str = "cpu",
        plan: Plan | None = None,
        max_error: float = 0.0,
    ) -> None:
        flat = [sigma.detach().cpu().double().numpy() for sigma in sigmas.values()]
        sizes = {module: sigma.size for module, sigma in zip(sigmas, flat, strict=True)}
        self._sigma = np.concatenate([np.zeros(0), *flat])
        self._plan = plan or {module: MatrixPlan((size, size)) for module, size in sizes.items()}
        self._max_error = max_error
        self._columns = _columns(sizes)
        self._delta_columns = _columns({module: self._plan[module].delta_rank for module in sizes})
        self._ones = {module: torch.ones(size) for module, size in sizes.items()}
        self._index = {module: index for index, module in enumerate(sizes)}
        self._layout = FlatLayout.of(self._sigma, self._columns, self._plan, max_error)
        # NaN shows at once if a token carries a slot that was never written.
        self.scale = _poisoned(slots, _width(self._columns), torch.device(device))
        self.delta = _poisoned(slots, _width(self._delta_columns), torch.device(device))
        self.modes = torch.full((len(sizes), slots), int(LinearMode.FACTORED), dtype=torch.uint8)
        self.supports = torch.zeros(len(sizes), slots, dtype=torch.int32)
        self.write(0, self.rows_of({}))

    def columns(self, module: str) -> Tensor:
        """A matrix's columns of `scale`, [S, R], a view whose row stride is the table's."""
        return self.scale[:, self._columns[module]]

    def delta_columns(self, module: str) -> Tensor:
        """A matrix's columns of `delta`, [S, K], a view like `columns`."""
        return self.delta[:, self._delta_columns[module]]

    def stacked_columns(self, modules: Seq[str]) -> Tensor:
        """The columns of `scale` of matrices that follow each other, [S, sum of R], a view like `columns`."""
        return self.scale[:, _joined([self._columns[module] for module in modules])]

    def stacked_delta_columns(self, modules: Seq[str]) -> Tensor:
        """The columns of `delta` of matrices that follow each other, [S, sum of K], a view like `columns`."""
        return self.delta[:, _joined([self._delta_columns[module] for module in modules])]

    def modes_of(self, module: str) -> Tensor:
        """A matrix's row of `modes`, [S] uint8, a view."""
        return self.modes[self._index[module]]

    def supports_of(self, module: str) -> Tensor:
        """A matrix's row of `supports`, [S] int32, a view."""
        return self.supports[self._index[module]]

    def restore_modes(self, slot: int) -> None:
        """Sets a slot's modes back to those of its own z, after `modes` was changed."""
        for module, index in self._index.items():
            mode = self._plan[module].mode_of(int(self.supports[index, slot]))
            assert mode is not None  # or the slot's rows would have been refused
            self.modes[index, slot] = int(mode)

    def mode_key(self, slot: int) -> bytes:
        """Sort key: groups tokens of equal modes, with base tokens first."""
        return self.modes[:, slot].numpy().tobytes()

    def rows(self, expert: Expert) -> SlotRows:
        """The rows of an expert, renormalised if it asks for that; raises ZweaveError as `rows_of` does."""
        return self.rows_of(expert.z, expert.renormalise)

    def rows_of(self, z: Mapping[str, Tensor], renormalise: bool = False) -> SlotRows:
        """The rows for z [R] of each matrix that differs from the base model's; computed in float64.

        Raises ZweaveError if the renormalisation divides by next to nothing, the scales overflow float32, or the
        plan has no mode for a matrix.
        """
        scale = self._scale_of(z, renormalise)
        change = scale - self._sigma
        supports = self._layout.supports(change)
        modes = [
            self._mode(module, support, change)
            for module, support in zip(self._columns, supports.tolist(), strict=True)
        ]
        return SlotRows(
            torch.from_numpy(scale.astype(np.float32)),
            torch.from_numpy(change[self._layout.leading].astype(np.float32)),
            torch.tensor(modes, dtype=torch.uint8),
            torch.from_numpy(supports),
        )

    def _scale_of(self, z: Mapping[str, Tensor], renormalise: bool) -> Array:
        """sigma * z of all matrices side by side; raises as `adapted_scale` does."""
        assert z.keys() <= self._columns.keys()
        # One after the other in a single call: matrices are many and their z short.
        parts = [z[module].cpu() if module in z else one for module, one in self._ones.items()]
        scale: Array = self._sigma * torch.cat([torch.ones(0), *parts]).detach().double().numpy()
        for module in z if renormalise else ():
            part = scale[self._columns[module]]
            part *= renormalisation(module, self._sigma[self._columns[module]], part)
        _check_range(scale)
        return scale

    def write(self, slot: int, rows: SlotRows) -> None:
        """Writes the rows of a slot; on a device after what was launched there, and without waiting."""
        for table, row in ((self.scale, rows.scale), (self.delta, rows.delta)):
            table[slot].copy_(row.pin_memory() if table.is_cuda else row, non_blocking=True)
        self.modes[:, slot].copy_(rows.modes)
        self.supports[:, slot].copy_(rows.supports)

    def _mode(self, module: str, support: int, change: Array) -> LinearMode:
        """A matrix's mode for this change of all singular values; ZweaveError if there is none."""
        plan = self._plan[module]
        mode = plan.mode_of(support)
        if mode is None:
            raise ZweaveError(
                f"the expert adapts {support} components of {module}, and this engine keeps "
                f"{plan.delta_rank}: allow it more memory"
            )
        if plan.format and mode == LinearMode.DELTA and self._max_error:
            columns = self._columns[module]
            largest = np.abs(change[columns]).max() / self._sigma[columns.start]
            self._check_rounding(module, plan.format, largest)
        return mode

    def _check_rounding(self, module: str, format: IntegerFormat, change: float) -> None:
        """Raises ZweaveError if integers cost a delta, `change` of the matrix's norm, more than is allowed."""
        error = STATED_ERROR[format] * change
        if error > self._max_error:
            raise ZweaveError(
                f"the expert changes {module} by {change:.1e} of its norm, and {format} factors may lose {error:.1e}: "
                "allow more error or more memory"
            )


def adapted_scale(module: str, sigma: Array, z: Tensor, renormalise: bool = False) -> Array:
    """sigma * z [R] in float64, renormalised if asked.

    Raises ZweaveError if the renormalisation divides by next to nothing, or the result overflows float32.
    """
    scale: Array = sigma * z.detach().cpu().double().numpy()
    if renormalise:
        scale *= renormalisation(module, sigma, scale)
    _check_range(scale)
    return scale


def _check_range(scale: Array) -> None:
    """Raises ZweaveError unless all scales fit float32."""
    if not (np.abs(scale) < np.finfo(np.float32).max).all():
        raise ZweaveError("the mixture's scales overflow float32: its weights are too large")


def renormalisation(module: str, sigma: Array, scale: Array) -> float:
    """sum(sigma) / sum(sigma * z), with scale = sigma * z; ZweaveError if that divides by next to nothing."""
    whole, scaled = float(sigma.sum()), float(scale.sum())
    if whole == 0:
        return 1.0
    if abs(scaled) < 1e-6 * whole:
        raise ZweaveError(f"{module} cannot be renormalised: its scaled singular values add up to nothing")
    return whole / scaled


def _columns(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Consecutive stretches of a table's columns."""
    ends = list(accumulate(sizes.values()))
    starts = [0, *ends[:-1]] if ends else []
    return dict(zip(sizes, map(slice, starts, ends), strict=True))


def _joined(parts: Seq[slice]) -> slice:
    """Consecutive stretches as one."""
    if any(one.stop != other.start for one, other in pairwise(parts)):
        raise ValueError("the matrices do not follow each other in the tables")
    return slice(parts[0].start, parts[-1].stop)


def _poisoned(slots: int, width: int, device: torch.device) -> Tensor:
    """A table of NaN. Its rows lie far apart, so that on a CPU it is worth large pages."""
    if device.type == "cpu":
        return empty_in_huge_pages((slots, width), torch.float32).fill_(math.nan)
    return torch.full((slots, width), math.nan, dtype=torch.float32, device=device)


def _width(columns: Mapping[str, slice]) -> int:
    return max((part.stop for part in columns.values()), default=0)
