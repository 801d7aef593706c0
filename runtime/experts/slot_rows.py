"""The rows of a slot, worked out from z in few operations on long vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zweave.kernels import LinearMode, empty_in_huge_pages

from ..errors import ZweaveError
from ..planner.delta_formats import STATED_ERROR, IntegerFormat
from ..planner.plan import MatrixPlan, Plan
from .flat_layout import FlatLayout
from .flat_z import FlatZ

Single: TypeAlias = npt.NDArray[np.float32]
Double: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class SlotModes:
    """What a slot's rows are in each matrix.

    modes: [matrices] uint8.
    supports: [matrices] int32.
    """

    modes: Tensor
    supports: Tensor


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The rows of one slot.

    scale: [sum of R] float32.
    delta: [sum of K] float32.
    modes: shared by all experts of these supports.
    """

    scale: Tensor
    delta: Tensor
    modes: SlotModes

    @property
    def nbytes(self) -> int:
        return self.scale.nbytes + self.delta.nbytes


class RowBuilder:
    """Works out rows: sigma * z, sigma * (z - 1), and the mode of each matrix, all as if in float64.

    sigmas: adaptable matrix -> singular values [R].
    layout: of these matrices.
    plan, max_error, scales: as of `SlotTables`.

    is_plain: whether float32 gives the bits of float64 where nothing is renormalised.
    """

    def __init__(
        self,
        sigmas: Mapping[str, Tensor],
        layout: FlatLayout,
        plan: Plan,
        max_error: float,
        scales: Mapping[str, Tensor] | None = None,
    ) -> None:
        flat = [sigma.detach().cpu().double().numpy() for sigma in sigmas.values()]
        self._layout = layout
        self._plans = [(module, plan[module]) for module in layout.columns]
        self._max_error = max_error
        self._known_modes: WeakValueDictionary[tuple[int, ...], SlotModes] = WeakValueDictionary()
        self._leading = layout.leading({module: kept.delta_rank for module, kept in self._plans})
        self._double: Double = np.concatenate([np.zeros(0), *flat])
        # Every row is a pass over these.
        self._single: Single = empty_in_huge_pages((len(self._double),), torch.float32).numpy()
        self._single[:] = self._double
        self._leading_single = self._single[self._leading]
        self._scale = (
            self._single if scales is None else torch.cat([scales[m].float() for m in layout.columns]).numpy()
        )
        self._zeros = np.flatnonzero(self._double == 0)
        self.is_plain = not max_error and bool((self._single == self._double).all())
        self._tolerance = np.concatenate(
            [np.zeros(0), *(np.full(len(sigma), max_error * sigma[0]) for sigma in flat)]
        )

    def rows(self, z: FlatZ, renormalise: bool) -> SlotRows:
        """The rows for z, renormalised if asked; raises ZweaveError as `SlotTables.rows_of`."""
        if renormalise or not self.is_plain:
            return self._rows_by_double(z, renormalise)
        modes = self._modes_of(z.values)
        scale, delta = np.empty_like(self._single), np.empty_like(self._leading_single)
        self.plain(z.values, scale, delta)
        if not np.isfinite(scale).all():
            raise _overflow()
        return SlotRows(torch.from_numpy(scale), torch.from_numpy(delta), modes)

    def plain(self, z: Single, scale: Single, delta: Single) -> None:
        """Writes the scale and the delta of z [sum of R], where `is_plain`; not checked.

        scale: may be z itself.
        """
        # A product of two float32 is exact in float64, so that rounding it is what float32 does.
        with np.errstate(over="ignore", invalid="ignore"):
            self._write_delta(z, delta)
            np.multiply(self._scale, z, out=scale)

    def _modes_of(self, z: Single) -> SlotModes:
        differs = z != 1
        differs[self._zeros] = False
        return self._modes(self._layout.supports(differs))

    def _write_delta(self, z: Single, delta: Single) -> None:
        """sigma * (z - 1) of the leading components."""
        # Its indices are right, so that nothing has to look before it writes.
        z.take(self._leading, out=delta, mode="clip")
        if not self._zeros.size and (delta >= 0.5).all():
            # z - 1 is exact then, and no product a negative zero.
            np.subtract(delta, 1, out=delta)
            np.multiply(self._leading_single, delta, out=delta)
        else:
            sigma = self._double[self._leading]
            delta[:] = sigma * delta - sigma

    def _rows_by_double(self, z: FlatZ, renormalise: bool) -> SlotRows:
        adapted: Double = self._double * z.values
        scale: Double = adapted if self._scale is self._single else self._scale.astype(np.float64) * z.values
        for module in z.modules if renormalise else ():
            columns = self._layout.columns[module]
            factor = renormalisation(module, self._double[columns], adapted[columns])
            for row in (adapted,) if scale is adapted else (adapted, scale):
                row[columns] *= factor
        _check_range(scale)
        change = adapted - self._double
        supports = self._layout.supports(np.abs(change) > self._tolerance)
        modes = self._modes(supports)
        if self._max_error:
            self._check_rounding(supports, change)
        return SlotRows(
            torch.from_numpy(scale.astype(np.float32)),
            torch.from_numpy(change[self._leading].astype(np.float32)),
            modes,
        )

    def _modes(self, supports: list[int]) -> SlotModes:
        """What rows of these supports are in each matrix; ZweaveError if the plan has no mode for one."""
        key = tuple(supports)
        found = self._known_modes.get(key)
        if found is None:
            modes = [
                _mode(module, plan, support)
                for (module, plan), support in zip(self._plans, supports, strict=True)
            ]
            found = SlotModes(
                torch.tensor(modes, dtype=torch.uint8), torch.tensor(supports, dtype=torch.int32)
            )
            self._known_modes[key] = found
        return found

    def _check_rounding(self, supports: list[int], change: Double) -> None:
        """Raises ZweaveError if integers cost a delta more than is allowed."""
        for (module, plan), support in zip(self._plans, supports, strict=True):
            format = plan.format_of(support)
            if format and plan.mode_of(support) == LinearMode.DELTA:
                columns = self._layout.columns[module]
                share = np.abs(change[columns]).max() / self._double[columns.start]
                _check_format(module, format, share, self._max_error)


def _mode(module: str, plan: MatrixPlan, support: int) -> LinearMode:
    mode = plan.mode_of(support)
    if mode is None:
        raise ZweaveError(
            f"the expert adapts {support} components of {module}, and this engine keeps "
            f"{plan.delta_rank}: allow it more memory"
        )
    return mode


def _check_format(module: str, format: IntegerFormat, change: float, max_error: float) -> None:
    """change: of a matrix, a share of its norm."""
    error = STATED_ERROR[format] * change
    if error > max_error:
        raise ZweaveError(
            f"the expert changes {module} by {change:.1e} of its norm, and {format} factors may lose {error:.1e}: "
            "allow more error or more memory"
        )


def adapted_scale(module: str, sigma: Double, z: Tensor, renormalise: bool = False) -> Double:
    """sigma * z [R] in float64, renormalised if asked.

    Raises ZweaveError if the renormalisation divides by next to nothing, or the result overflows float32.
    """
    scale: Double = sigma * z.detach().cpu().double().numpy()
    if renormalise:
        scale *= renormalisation(module, sigma, scale)
    _check_range(scale)
    return scale


def _check_range(scale: Double) -> None:
    """Raises ZweaveError unless all scales fit float32."""
    if not (np.abs(scale) < np.finfo(np.float32).max).all():
        raise _overflow()


def _overflow() -> ZweaveError:
    return ZweaveError("the mixture's scales overflow float32: its weights are too large")


def renormalisation(module: str, sigma: Double, scale: Double) -> float:
    """sum(sigma) / sum(sigma * z), with scale = sigma * z; ZweaveError if that divides by next to nothing."""
    whole, scaled = float(sigma.sum()), float(scale.sum())
    if whole == 0:
        return 1.0
    if abs(scaled) < 1e-6 * whole:
        raise ZweaveError(f"{module} cannot be renormalised: its scaled singular values add up to nothing")
    return whole / scaled
