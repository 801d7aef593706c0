"""Per-slot scale, delta and mode tables, indexed by each token's slot."""

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from zweave.kernels import LinearMode, empty_in_huge_pages

from ..planner.plan import MatrixPlan, Plan
from .expert import Expert
from .flat_layout import FlatLayout
from .flat_z import FlatZ, Values
from .slot_rows import RowBuilder, SlotModes, SlotRows


class SlotTables:
    """The rows of the resident experts and mixtures; row 0 is the base model's.

    sigmas: adaptable matrix -> singular values [R], descending, in layer order.
    slots: number of rows, the base model's included.
    device: of `scale` and `delta`.
    plan: which modes each matrix has; all are factored by default.
    max_error: share of a matrix's largest singular value. Components whose sigma * |z - 1| is at most that may be
        left out where this opens a cheaper mode. As U and V are orthonormal, the spectral norm of the difference
        is then at most this share of that of the matrix.
    scales: adaptable matrix -> what z multiplies in factored mode [R], where that is not sigma: of refit factors.

    layout: of all matrices in `scale`.
    scale: [slots, sum of R] float32, sigma * z, or `scales` * z, of all matrices side by side.
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
        scales: Mapping[str, Tensor] | None = None,
    ) -> None:
        ranks = {module: sigma.numel() for module, sigma in sigmas.items()}
        self._plan = plan or {module: MatrixPlan((rank, rank)) for module, rank in ranks.items()}
        self.layout = FlatLayout.of(ranks)
        self._delta_layout = FlatLayout.of({module: self._plan[module].delta_rank for module in ranks})
        self._index = {module: index for index, module in enumerate(ranks)}
        self._builder = RowBuilder(sigmas, self.layout, self._plan, max_error, scales)
        # NaN shows at once if a token carries a slot that was never written.
        self.scale = _poisoned(slots, self.layout.width, torch.device(device))
        self.delta = _poisoned(slots, self._delta_layout.width, torch.device(device))
        self.modes = torch.full((len(ranks), slots), int(LinearMode.FACTORED), dtype=torch.uint8)
        self.supports = torch.zeros(len(ranks), slots, dtype=torch.int32)
        self.write(0, self.rows_of({}))

    def columns(self, module: str) -> Tensor:
        """A matrix's columns of `scale`, [S, R], a view whose row stride is the table's."""
        return self.scale[:, self.layout.columns[module]]

    def delta_columns(self, module: str) -> Tensor:
        """A matrix's columns of `delta`, [S, K], a view like `columns`."""
        return self.delta[:, self._delta_layout.columns[module]]

    def stacked_columns(self, modules: Seq[str]) -> Tensor:
        """The columns of `scale` of matrices that follow each other, [S, sum of R], a view like `columns`."""
        return self.scale[:, self.layout.joined(modules)]

    def stacked_delta_columns(self, modules: Seq[str]) -> Tensor:
        """The columns of `delta` of matrices that follow each other, [S, sum of K], a view like `columns`."""
        return self.delta[:, self._delta_layout.joined(modules)]

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

    def rows_of(self, z: Mapping[str, Tensor] | FlatZ, renormalise: bool = False) -> SlotRows:
        """The rows for z [R] of each matrix that differs from the base model's; computed as if in float64.

        Raises ZweaveError if the renormalisation divides by next to nothing, the scales overflow float32, or the
        plan has no mode for a matrix.
        """
        flat = z if isinstance(z, FlatZ) else FlatZ.of(z, self.layout)
        return self._builder.rows(flat, renormalise)

    def write(self, slot: int, rows: SlotRows) -> None:
        """Writes the rows of a slot; on a device after what was launched there, and without waiting."""
        _copy(self.scale[slot], rows.scale)
        _copy(self.delta[slot], rows.delta)
        self._write_modes(slot, rows.modes)

    def may_write_z(self, renormalise: bool) -> bool:
        """Whether `write_z` is allowed for an expert, which depends on the tables as well."""
        return self._builder.is_plain and not renormalise

    def write_z(self, slot: int, read: Callable[[Values], FlatZ], modes: SlotModes) -> SlotRows | None:
        """Works out rows where they lie, as `rows_of` and `write` do in more passes through memory.

        read: gives z, which may lie in the memory that it is given.
        modes: of the rows that `rows_of` made of the same z before.

        Returns the rows as the host has them; None on a CPU, where the tables alone have them. What `read` raises
        leaves a row that is not defined.
        """
        rows = SlotRows(_on_host(self.scale[slot]), _on_host(self.delta[slot]), modes)
        scale = rows.scale.numpy()
        self._builder.plain(read(scale).values, scale, rows.delta.numpy())
        if self.scale.is_cuda:
            self.write(slot, rows)
            return rows
        self._write_modes(slot, modes)
        return None

    def rows_in(self, slot: int) -> SlotRows:
        """A copy of the rows of a slot of tables on a CPU, with the modes of its own z."""
        self.restore_modes(slot)
        modes = SlotModes(self.modes[:, slot].clone(), self.supports[:, slot].clone())
        return SlotRows(self.scale[slot].clone(), self.delta[slot].clone(), modes)

    def _write_modes(self, slot: int, modes: SlotModes) -> None:
        self.modes[:, slot].copy_(modes.modes)
        self.supports[:, slot].copy_(modes.supports)


def _on_host(row: Tensor) -> Tensor:
    """A row itself, or for that of a device memory from which it can be copied there."""
    return torch.empty_like(row, device="cpu", pin_memory=True) if row.is_cuda else row


def _copy(target: Tensor, row: Tensor) -> None:
    target.copy_(row.pin_memory() if target.is_cuda else row, non_blocking=True)


def _poisoned(slots: int, width: int, device: torch.device) -> Tensor:
    """A table of NaN. Its rows lie far apart, so that on a CPU it is worth large pages."""
    if device.type == "cpu":
        return empty_in_huge_pages((slots, width), torch.float32).fill_(math.nan)
    return torch.full((slots, width), math.nan, dtype=torch.float32, device=device)
