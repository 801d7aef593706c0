"""A batch's tokens by the mode in which they pass through a matrix: each mode takes its own, then all come together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zweave.kernels import LinearMode

from ..experts.support import Support

# The components that a delta may use; experts that adapt others take the factors.
DELTA = Support.parse("leading:R/8")


@dataclass(frozen=True, slots=True)
class Group:
    """Tokens that go one mode.

    index: int64, which of the batch's tokens, None for all of them. slot: int32, the row of the tables of each.
    """

    mode: LinearMode
    index: Tensor | None
    slot: Tensor


def groups_of(modes: Tensor, slot: Tensor, device: torch.device | str = "cpu") -> tuple[Group, ...]:
    """The groups of a batch, on a device. modes: [T] uint8, slot: [T] int32, both on the CPU."""
    found = [LinearMode(mode) for mode in modes.unique().tolist()] or [LinearMode.FACTORED]
    if len(found) == 1:
        return (Group(found[0], None, slot.to(device)),)
    indices = [(modes == mode).nonzero().flatten() for mode in found]
    return tuple(
        Group(mode, index.to(device), slot[index].to(device))
        for mode, index in zip(found, indices, strict=True)
    )


def pass_through(
    groups: Sequence[Group], x: Tensor, outputs: int, through: Callable[[LinearMode, Tensor, Tensor], Tensor]
) -> Tensor:
    """y [T, outputs] of x [T, in_features]. through: y of some tokens that go a mode, given x and slot of them."""
    if groups[0].index is None:
        return through(groups[0].mode, x, groups[0].slot)
    y = x.new_empty(len(x), outputs)
    for group in groups:
        assert group.index is not None  # only one that is alone has none
        y.index_copy_(0, group.index, through(group.mode, x[group.index], group.slot))
    return y
