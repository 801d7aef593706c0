"""The tensors of a model on a GPU: plain or on a grid, and those of one input stacked."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from zweave.kernels import (
    DeltaFactors,
    DeviceOps,
    GridPanels,
    GridStack,
    JoinedLinear,
    Stack,
    StackedLinear,
    grid_of,
    quantize,
    together,
)

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.module_name import module_name
from ..decomposition.decomposition import Decomposition
from ..experts.bank import Bank
from ..planner.plan import MatrixPlan, Plan
from .grid_embedding import GridEmbedding
from .held_weights import HeldWeights

_EMBEDDING = "model.embed_tokens.weight"
Embedding: TypeAlias = Tensor | GridEmbedding


class DeviceWeights(Protocol):
    """What a model on a GPU is made of."""

    device: torch.device

    def tensor(self, name: str) -> Tensor:
        """A tensor on the device, by its name in a checkpoint."""

    def embedding_and_head(self, is_tied: bool) -> tuple[Embedding, Tensor | GridPanels]:
        """The embedding [vocabulary, hidden], which is indexed, and the head, which may be the same."""

    def stacked(self, layer: int, linears: Sequence[str], silu: bool = False) -> StackedLinear | JoinedLinear:
        """Linears of a layer that have one input."""


class GpuWeights:
    """Reads the tensors of a checkpoint and its decomposition, those that the plan keeps resident.

    held: the form in which they stay
    library_from: see `StackedLinear`
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        decomposition: Decomposition,
        bank: Bank,
        plan: Plan,
        held: HeldWeights,
        dtype: torch.dtype,
        device: torch.device,
        ops: DeviceOps,
        library_from: int | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._decomposition = decomposition
        self._bank = bank
        self._plan = plan
        self._held = held
        self._ops = ops
        self._library_from = library_from
        self._present = frozenset(checkpoint.names())
        self.dtype = dtype
        self.device = device

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint.tensor(name).to(self.device, self.dtype, copy=True)

    def matrix(self, name: str) -> Tensor | GridPanels:
        """A matrix, on its grid where that is kept."""
        grid = self._checkpoint.grid(name) if self._held.on_grid else None
        return self.tensor(name) if grid is None else GridPanels.of(grid, self.device)

    def embedding_and_head(self, is_tied: bool) -> tuple[Embedding, Tensor | GridPanels]:
        embedding = self.matrix(_EMBEDDING)
        head = embedding if is_tied else self.matrix("lm_head.weight")
        if isinstance(embedding, GridPanels):
            return GridEmbedding(partial(self._rows, embedding), self.dtype), head
        return embedding, head

    def _rows(self, matrix: GridPanels, index: Tensor) -> Tensor:
        rows = torch.empty(len(index), matrix.shape[1], dtype=self.dtype, device=self.device)
        self._ops.grid_values(rows, matrix, index)
        return rows

    def stacked(self, layer: int, linears: Sequence[str], silu: bool = False) -> StackedLinear | JoinedLinear:
        """Linears of a layer that have one input; a stack is of weights of one format."""
        modules = [module_name(layer, linear) for linear in linears]
        runs = [list(run) for _, run in groupby(modules, self._format)]
        # The gate of integers is a kernel of its own; base tokens shall have the same bits beside them and alone.
        own_gate = silu and self._library_from is None and any(self._plan[m].format for m in modules)
        if len(runs) == 1 and not own_gate:
            return self._stacked(modules, silu)
        return JoinedLinear(self._ops, tuple(self._stacked(run) for run in runs), silu)

    def _format(self, module: str) -> object:
        """What linears of one stack have in common."""
        plan = self._plan[module]
        return plan.grid, plan.factor_grids, plan.format

    def _stacked(self, modules: Sequence[str], silu: bool = False) -> StackedLinear:
        """A stack of linears whose plan is the same."""
        plans = [self._plan[module] for module in modules]
        (keeps_dense,), (keeps_factors,) = {p.dense for p in plans}, {p.factored for p in plans}
        tables, pool = self._bank.tables, self._bank.components
        factors: Any = zip(*(self._factors(module, self._plan[module]) for module in modules), strict=True)
        u, vt = factors
        leading = DeltaFactors(vt, u)
        stack: Stack | GridStack | None = None
        if self._held.refit is not None:
            stack = GridStack(vt)
        elif keeps_factors:
            plain, u = Stack.of(vt), together(u)
            stack, leading = plain, DeltaFactors.leading(plain.parts, u, [plan.delta_rank for plan in plans])
        return StackedLinear(
            ops=self._ops,
            dense=self._dense(modules) if keeps_dense else None,
            vt=stack,
            u=u if keeps_factors else (),
            scale=tables.stacked_columns(modules) if keeps_factors else None,
            leading=leading,
            delta=tables.stacked_delta_columns(modules),
            bias=self._bias(modules, [plan.shape[0] for plan in plans]),
            silu=silu,
            library_from=self._library_from,
            components=() if pool is None else tuple(map(pool.linear, modules)),
        )

    def _dense(self, modules: Sequence[str]) -> Stack | GridStack:
        parts = [self.matrix(f"{module}.weight") for module in modules]
        grids = tuple(part for part in parts if isinstance(part, GridPanels))
        return GridStack(grids) if grids else Stack.of([part for part in parts if isinstance(part, Tensor)])

    def _factors(self, module: str, plan: MatrixPlan) -> tuple[Any, Any]:
        """u and vt of the components that a plan keeps, in its format."""
        if self._held.refit is not None:
            refit = self._held.refit.matrix(module)
            return GridPanels.of(grid_of(refit.u), self.device), GridPanels.of(grid_of(refit.vt), self.device)
        of_u, _, of_vt = self._decomposition.factors(module)
        u, vt = of_u[:, : plan.kept].to(self.device), of_vt[: plan.kept].to(self.device)
        if plan.format:
            return quantize(u, plan.format), quantize(vt, plan.format)
        return u.to(self.dtype).contiguous(), vt.to(self.dtype)

    def _bias(self, modules: Sequence[str], sizes: Sequence[int]) -> Tensor | None:
        """Biases one after the other, zeros for linears without one; None if none has one."""
        names = [f"{module}.bias" for module in modules]
        if not any(name in self._present for name in names):
            return None
        zeros = (torch.zeros(size, dtype=self.dtype, device=self.device) for size in sizes)
        parts = [
            self.tensor(name) if name in self._present else zero
            for name, zero in zip(names, zeros, strict=True)
        ]
        return torch.cat(parts)
