"""Merges hot experts into weights of their own, in the background and within a memory budget."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zweave.kernels import Decoder, LinearMode, Packed, pack

from ..checkpoint.module_name import layer_of, linear_of
from ..decomposition.decomposition import Decomposition
from ..experts.bank import Bank
from ..planner.batch_planner import count_by_slot
from ..planner.cost_model import CostModel
from ..planner.plan import Plan

# A merge begins once it would have repaid its cost this many times over.
CAUTION = 2.0


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """What is merged, when that pays, and how much of it fits.

    modules: the matrices that can be merged, those that keep all factors
    dtype: of merged weights
    bytes_each: bytes of the merged weights of a slot
    max_slots: number of slots whose merged weights fit the budget
    tokens_worthwhile: number of tokens of a slot from which on a merge begins
    """

    modules: tuple[str, ...]
    dtype: torch.dtype
    bytes_each: int
    max_slots: int
    tokens_worthwhile: float

    @classmethod
    def of(cls, plan: Plan, dtype: torch.dtype, costs: CostModel, budget: int) -> "MergePolicy":
        """The policy for a plan and a budget in bytes, by what products cost on this machine."""
        shapes = {module: matrix.shape for module, matrix in plan.items() if matrix.factored}
        bytes_each = sum(M * N for M, N in shapes.values()) * dtype.itemsize
        saving = sum(min(M, N) * (M + N) - M * N for M, N in shapes.values()) * 2 / costs.flops_per_second
        cost = sum(2 * M * N * min(M, N) for M, N in shapes.values()) / costs.flops_per_second
        tokens_worthwhile = CAUTION * cost / saving if saving > 0 else float("inf")
        return cls(tuple(shapes), dtype, bytes_each, budget // max(1, bytes_each), tokens_worthwhile)


@dataclass(slots=True)
class _Merged:
    """The merged weights of a slot.

    digest: of the mixture that they were made for
    used: the last step with tokens of the slot
    making: the weights while a thread computes them, None once they are installed
    """

    digest: str
    used: int
    making: "Future[dict[str, Packed]] | None" = field(default=None)


class Merger:
    """Gives the slots that most tokens use merged weights `W'`: `W' x` costs as much as `W x`.

    A merge begins once the tokens seen of a slot would have repaid it `CAUTION` times. A background thread computes
    it, and it takes effect between two steps (`settle`). When the budget is reached the least recently used merge is
    dropped. A merge is dropped at once if its slot goes to another mixture.
    """

    def __init__(
        self, decomposition: Decomposition, bank: Bank, decoder: Decoder, policy: MergePolicy
    ) -> None:
        self._decomposition = decomposition
        self._bank = bank
        self._decoder = decoder
        self.policy = policy
        # Of the mixture that a slot holds: its digest, and its tokens so far.
        self._tokens: dict[int, tuple[str, int]] = {}
        self._merged: dict[int, _Merged] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="zweave-merge")
        self._step = 0

    @property
    def slots(self) -> list[int]:
        """Slots whose merged weights are in use."""
        return [slot for slot, merged in self._merged.items() if merged.making is None]

    def settle(self, slot: Tensor) -> None:
        """Installs, drops and begins merges. Called between steps, with the slots [T] of the next step's tokens."""
        self._step += 1
        for known, merged in list(self._merged.items()):
            if self._bank.digest_of(known) != merged.digest:
                self._drop(known)
            elif merged.making is not None and merged.making.done():
                self._install(known, merged)
        for current, tokens in count_by_slot(slot).items():
            if current in self._merged:
                self._merged[current].used = self._step
                continue
            digest, seen = self._bank.digest_of(current), 0
            if current in self._tokens and self._tokens[current][0] == digest:
                seen = self._tokens[current][1]
            self._tokens[current] = (digest, seen + tokens)
            if self.policy.max_slots and seen + tokens >= self.policy.tokens_worthwhile:
                self._begin(current)

    def _begin(self, slot: int) -> None:
        if len(self._merged) >= self.policy.max_slots:
            oldest = min(self._merged, key=lambda known: self._merged[known].used)
            if self._merged[oldest].used >= self._step - 1 or self._merged[oldest].making is not None:
                return
            self._drop(oldest)
        digest = self._bank.digest_of(slot)
        scales = {module: self._bank.tables.columns(module)[slot].clone() for module in self.policy.modules}
        self._merged[slot] = _Merged(digest, self._step, self._pool.submit(self._make, scales))
        self._tokens.pop(slot, None)

    @torch.inference_mode()
    def _make(self, scales: dict[str, Tensor]) -> dict[str, Packed]:
        weights = {}
        for module, scale in scales.items():
            u, _, vt = self._decomposition.factors(module)
            weights[module] = pack(((u * scale) @ vt).to(self.policy.dtype))
        return weights

    def _install(self, slot: int, merged: _Merged) -> None:
        assert merged.making is not None
        for module, weight in merged.making.result().items():
            self._decoder.set_merged(*layer_and_linear(module), slot, weight)
            self._bank.tables.modes_of(module)[slot] = int(LinearMode.MERGED)
        merged.making = None

    def _drop(self, slot: int) -> None:
        merged = self._merged.pop(slot)
        if merged.making is not None:
            merged.making.cancel()
            return
        if self._bank.digest_of(slot) == merged.digest:
            self._bank.tables.restore_modes(slot)
        for module in self.policy.modules:
            self._decoder.set_merged(*layer_and_linear(module), slot, None)


def layer_and_linear(module: str) -> tuple[int, str]:
    """The layer and the linear of a `Decoder` that a matrix belongs to, such as (0, "up")."""
    return layer_of(module), linear_of(module).removesuffix("_proj")
