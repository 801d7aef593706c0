"""The bank: registered experts, and the resident table of scale rows that tokens pick by slot."""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import accumulate
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zweave.errors import ZweaveError
from zweave.expert import Expert, Scope, layer_of
from zweave.integer_factors import STATED_ERROR, IntegerFormat
from zweave.kernels import Way, empty_in_huge_pages
from zweave.mixture import Mixture, check_name, check_same_kind, mix_experts
from zweave.plan import MatrixPlan, Plan

Array: TypeAlias = npt.NDArray[np.float64]

BASE_DIGEST = "base"


class BankFullError(ZweaveError):
    """Every slot of the bank is in use: wait for a release."""


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """A registered expert: what is known of it without its z, and where these are.

    path: its file, read again when a slot needs it; None if `expert` is kept in memory.
    """

    name: str
    digest: str
    scope: Scope
    first_layer: int
    renormalise: bool
    description: str
    path: Path | None
    expert: Expert | None

    def read(self) -> Expert:
        """The expert; ZweaveError if its file is gone or holds something else by now."""
        if self.expert is not None:
            return self.expert
        assert self.path is not None
        expert = Expert.load(self.path)
        if expert.digest != self.digest:
            raise ZweaveError(f"{self.path} changed since it was loaded as {self.name!r}: load it again")
        return expert


@dataclass(frozen=True, slots=True, eq=False)
class BoundMixture:
    """A mixture whose names have been looked up: it stays the same when names are unloaded or given anew.

    digest: of all that changes what it computes; that of an expert alone is the expert's.
    parts: experts of distinct content, sorted by digest, and their weights, one a layer.
    """

    digest: str
    scope: Scope
    first_layer: int
    parts: tuple[tuple[Registered, tuple[float, ...]], ...]


class Bank:
    """Scale rows of the experts and mixtures in use, at most `slots` of them, row 0 being the base's.

    sigmas: adaptable matrix -> singular values [R], descending, in layer order.
    slots: rows of the table, the identity included.
    base_digest: of the model's weights; experts for others are refused.
    plan: which ways the matrices have; all are factored by default.
    max_error: what of a matrix an expert may lose: components whose sigma * |z - 1| is at most this share of
        the largest singular value may be left out where that opens a cheaper way. As U and V are orthonormal
        the spectral norm of the difference is then at most this share of that of the matrix.

    Beside `table` there are `delta`, sigma * (z - 1) of the leading components that the plan keeps of each
    matrix, and `ways`, how each slot passes through each matrix. A slot's ways follow from its own z alone.

    Any number of experts may be registered: only those given as `Expert` stay in memory, of the others the
    name and digest do. Rows are found by digest, so equal mixtures share one. `acquire` pins a row and
    `release` frees it; a row that nobody holds stays until its slot is wanted, the longest unused first.
    All methods may be called from any thread.
    """

    def __init__(
        self,
        sigmas: Mapping[str, Tensor],
        slots: int,
        device: torch.device | str = "cpu",
        base_digest: str | None = None,
        plan: Plan | None = None,
        max_error: float = 0.0,
    ) -> None:
        if slots < 2:
            raise ZweaveError(f"a bank needs at least 2 slots (one is the base model's), not {slots}")
        self._sigmas = {module: sigma.detach().cpu().double().numpy() for module, sigma in sigmas.items()}
        self._columns = _columns({module: sigma.size for module, sigma in self._sigmas.items()})
        self._shapes = {module: sigma.shape for module, sigma in self._sigmas.items()}
        self._num_layers = 1 + max((layer_of(module) for module in self._sigmas), default=-1)
        self._base_digest = base_digest
        # NaN shows at once if a token carries a slot that was never written.
        self._plan = plan or {module: MatrixPlan((s.size, s.size)) for module, s in self._sigmas.items()}
        self._max_error = max_error
        self._leading = _columns({module: self._plan[module].leading for module in self._sigmas})
        self.table = _poisoned(slots, _width(self._columns), torch.device(device))
        self.delta = _poisoned(slots, _width(self._leading), torch.device(device))
        self.ways = torch.full((len(self._sigmas), slots), int(Way.FACTORED), dtype=torch.uint8)
        self.supports = torch.zeros(len(self._sigmas), slots, dtype=torch.int32)
        self._write(0, self._rows({}))
        self._experts: dict[str, Registered] = {}
        self._free = list(range(slots - 1, 0, -1))
        self._slot_of: dict[str, int] = {BASE_DIGEST: 0}
        self._digest_of: dict[int, str] = {0: BASE_DIGEST}
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._lock = RLock()

    def columns(self, module: str) -> Tensor:
        """A matrix's columns of the table, [S, R], a view whose row stride is the table's."""
        return self.table[:, self._columns[module]]

    def leading(self, module: str) -> Tensor:
        """A matrix's columns of the table of deltas, [S, K], a view like `columns`."""
        return self.delta[:, self._leading[module]]

    def ways_of(self, module: str) -> Tensor:
        """A matrix's row of the table of ways, [S] uint8, a view."""
        return self.ways[list(self._sigmas).index(module)]

    def supports_of(self, module: str) -> Tensor:
        """How many leading components of a matrix each slot adapts, [S] int32, a view."""
        return self.supports[list(self._sigmas).index(module)]

    def digest_of(self, slot: int) -> str:
        """Digest of the mixture whose row a slot holds, "" if it holds none."""
        with self._lock:
            return self._digest_of.get(slot, "")

    def restore_ways(self, slot: int) -> None:
        """Sets a slot's ways anew by its own z, after `ways` was changed."""
        with self._lock:
            for index, module in enumerate(self._sigmas):
                way = self._plan[module].way(int(self.supports[index, slot]))
                assert way is not None  # else the slot had not got its row
                self.ways[index, slot] = int(way)

    def way_key(self, slot: int) -> bytes:
        """Orders tokens so that those that go the same ways stand together, the base's first."""
        return self.ways[:, slot].numpy().tobytes()

    def load(self, name: str, expert: str | PathLike[str] | Expert) -> Registered:
        """Registers an expert under a name; requests bound earlier keep what the name meant to them.

        Raises ZweaveError if the name cannot be one, or the file or expert does not fit the model.
        """
        check_name(name)
        path = None if isinstance(expert, Expert) else Path(expert).absolute()
        held = expert if isinstance(expert, Expert) else Expert.load(Path(expert))
        try:
            held.check(self._shapes, self._base_digest)
        except ZweaveError as error:
            raise ZweaveError(f"{path or f'the expert {name!r}'}: {error}") from None
        registered = Registered(
            name=name,
            digest=held.digest,
            scope=held.scope,
            first_layer=held.first_layer,
            renormalise=held.renormalise,
            description=held.description,
            path=path,
            expert=_copy(held) if path is None else None,
        )
        with self._lock:
            self._experts[name] = registered
        return registered

    def unload(self, name: str) -> None:
        """Forgets a name at once; rows in use stay until they are released."""
        with self._lock:
            self._find(name)
            del self._experts[name]

    def experts(self) -> list[str]:
        """Names of the registered experts, in the order of their first loading."""
        with self._lock:
            return list(self._experts)

    def registered(self, name: str) -> Registered:
        """What is known of a registered expert; ZweaveError if there is none of that name."""
        with self._lock:
            return self._find(name)

    def bind(self, mixture: Mixture | BoundMixture | None) -> BoundMixture:
        """Looks a mixture's names up; None is the base, with digest "base" and no parts.

        Raises ZweaveError if a name is unknown, a per-layer list does not fit the model, or the experts
        disagree on scope or renormalisation.
        """
        if isinstance(mixture, BoundMixture):
            return mixture
        if mixture is None:
            return BoundMixture(BASE_DIGEST, "always", self._num_layers, ())
        with self._lock:
            found = [self._find(name) for name in mixture.names]
        check_same_kind([(part.name, part.scope, part.renormalise) for part in found])
        # The same content under two names is one expert with the sum of the weights.
        merged: dict[str, tuple[Registered, tuple[float, ...]]] = {}
        for part, weights in zip(found, mixture.weights(self._num_layers), strict=True):
            if part.digest in merged:
                weights = tuple(a + b for a, b in zip(merged[part.digest][1], weights, strict=True))
            merged[part.digest] = (part, weights)
        parts = tuple(merged[digest] for digest in sorted(merged))
        return BoundMixture(_digest(parts), found[0].scope, min(part.first_layer for part in found), parts)

    def digest(self, mixture: Mixture | BoundMixture | None) -> str:
        """What the mixture computes, as a key: equal digests give equal rows."""
        return self.bind(mixture).digest

    def scope(self, mixture: Mixture | BoundMixture | None) -> Scope:
        """From which token on the mixture acts; "always" for the base."""
        return self.bind(mixture).scope

    def acquire(self, mixture: Mixture | BoundMixture | None) -> int:
        """Pins the mixture's row and returns its slot, 0 for the base; each call needs a `release`.

        Raises BankFullError if other mixtures hold all slots, ZweaveError as `bind` does, if an expert's file
        is gone or changed, or if the renormalisation would divide by zero.
        """
        slot = self.try_acquire(mixture)
        if slot is None:
            raise BankFullError(
                f"all {len(self.table) - 1} expert slots are in use: "
                "wait for a request to finish or make the bank larger"
            )
        return slot

    def try_acquire(self, mixture: Mixture | BoundMixture | None) -> int | None:
        """As `acquire`, but None if other mixtures hold all slots."""
        bound = self.bind(mixture)
        if not bound.parts:
            return 0
        with self._lock:
            slot = self._slot_of.get(bound.digest)
            if slot is None:
                if not self._free and not self._idle:
                    return None
                rows = self._rows_of(bound)
                slot = self._take_slot()
                self._write(slot, rows)
                self._slot_of[bound.digest] = slot
                self._digest_of[slot] = bound.digest
            self._idle.pop(slot, None)
            self._holders[slot] = self._holders.get(slot, 0) + 1
            return slot

    def release(self, slot: int) -> None:
        """Gives back one `acquire`; slot 0 needs none and takes any number."""
        if slot == 0:
            return
        with self._lock:
            if slot not in self._holders:
                raise RuntimeError(f"slot {slot} is released and nobody holds it")
            self._holders[slot] -= 1
            if not self._holders[slot]:
                del self._holders[slot]
                self._idle[slot] = None

    def _find(self, name: str) -> Registered:
        if name in self._experts:
            return self._experts[name]
        close = get_close_matches(name, self._experts, n=3)
        if close:
            hint = f"did you mean {' or '.join(map(repr, close))}?"
        elif self._experts:
            known = sorted(self._experts)
            rest = f" and {len(known) - 8} more" if len(known) > 8 else ""
            hint = f"loaded: {', '.join(known[:8])}{rest}"
        else:
            hint = "none is loaded"
        raise ZweaveError(f"there is no expert {name!r}: {hint}")

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        slot, _ = self._idle.popitem(last=False)
        del self._slot_of[self._digest_of.pop(slot)]
        return slot

    def _rows_of(self, bound: BoundMixture) -> "_Rows":
        """A mixture's rows of the tables, the renormalisation included; computed in float64."""
        parts = [(part.read(), weights) for part, weights in bound.parts]
        expert = mix_experts([part for part, _ in parts], [weights for _, weights in parts])
        scales = {}
        for module, z in expert.z.items():
            sigma = self._sigmas[module]
            scales[module] = sigma * z.numpy().astype(np.float64)
            if expert.renormalise:
                scales[module] *= renormalisation(module, sigma, scales[module])
        return self._rows(scales)

    def _rows(self, scales: Mapping[str, Array]) -> "_Rows":
        """The rows for sigma * z of the matrices that differ from the base's."""
        row = np.empty(self.table.shape[1])
        delta = np.empty(self.delta.shape[1])
        ways = np.empty(len(self._sigmas), dtype=np.uint8)
        supports = np.empty(len(self._sigmas), dtype=np.int32)
        for index, (module, sigma) in enumerate(self._sigmas.items()):
            scale = scales.get(module, sigma)
            row[self._columns[module]] = scale
            plan = self._plan[module]
            lost = self._max_error * sigma[:1].sum()
            differs = np.flatnonzero(np.abs(scale - sigma) > lost)
            delta[self._leading[module]] = (scale - sigma)[: plan.leading]
            support = supports[index] = int(differs[-1]) + 1 if differs.size else 0
            way = plan.way(support)
            if way is None:
                raise ZweaveError(
                    f"the expert adapts {support} components of {module}, and this engine keeps "
                    f"{plan.leading}: allow it more memory"
                )
            if plan.format and way == Way.DELTA and self._max_error:
                self._check_rounding(module, plan.format, np.abs(scale - sigma).max() / sigma[0])
            ways[index] = way
        if not (np.abs(row) < np.finfo(np.float32).max).all():
            raise ZweaveError("the mixture's scales overflow float32: its weights are too large")
        parts = row.astype(np.float32), delta.astype(np.float32), ways, supports
        return _Rows(*map(torch.from_numpy, parts))

    def _check_rounding(self, module: str, format: IntegerFormat, change: float) -> None:
        """Raises ZweaveError if integers cost a delta, `change` of the matrix's norm, more than is allowed."""
        error = STATED_ERROR[format] * change
        if error > self._max_error:
            raise ZweaveError(
                f"the expert changes {module} by {change:.1e} of its norm, and {format} factors may lose {error:.1e}: "
                "allow more error or more memory"
            )

    def _write(self, slot: int, rows: "_Rows") -> None:
        self.table[slot].copy_(rows.scale)
        self.delta[slot].copy_(rows.delta)
        self.ways[:, slot].copy_(rows.ways)
        self.supports[:, slot].copy_(rows.supports)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a slot holds: scale [sum of R] and delta [sum of K] float32, ways [matrices] uint8 and supports
    [matrices] int32."""

    scale: Tensor
    delta: Tensor
    ways: Tensor
    supports: Tensor


def _columns(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Stretches of a table's columns, one after the other."""
    ends = list(accumulate(sizes.values()))
    starts = [0, *ends[:-1]] if ends else []
    return dict(zip(sizes, map(slice, starts, ends), strict=True))


def _poisoned(slots: int, width: int, device: torch.device) -> Tensor:
    """A table of NaN. Its rows lie far apart, so that on a CPU it is worth large pages."""
    if device.type == "cpu":
        return empty_in_huge_pages((slots, width), torch.float32).fill_(math.nan)
    return torch.full((slots, width), math.nan, dtype=torch.float32, device=device)


def _width(columns: Mapping[str, slice]) -> int:
    return max((part.stop for part in columns.values()), default=0)


def renormalisation(module: str, sigma: Array, scale: Array) -> float:
    """sum(sigma) / sum(sigma * z), with scale = sigma * z; ZweaveError if that divides by next to nothing."""
    whole, scaled = float(sigma.sum()), float(scale.sum())
    if whole == 0:
        return 1.0
    if abs(scaled) < 1e-6 * whole:
        raise ZweaveError(f"{module} cannot be renormalised: its scaled singular values add up to nothing")
    return whole / scaled


def _digest(parts: tuple[tuple[Registered, tuple[float, ...]], ...]) -> str:
    if len(parts) == 1 and set(parts[0][1]) == {1.0}:
        return parts[0][0].digest
    hashed = hashlib.sha256(b"zweave-mixture-1")
    for part, weights in parts:
        hashed.update(f"\n{part.digest} {' '.join(weight.hex() for weight in weights)}".encode())
    return hashed.hexdigest()


def _copy(expert: Expert) -> Expert:
    """The expert with tensors of its own, so that its digest stays true whatever the caller does to his."""
    return replace(expert, z={module: z.detach().cpu().clone() for module, z in expert.z.items()})
