"""The expert of each row of a batch, and the mode of its tokens in each matrix."""

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from zweave.kernels import LinearMode
from zweave.kernels.adapted_linear import TokenGroup, group_by_mode

from ...errors import ZweaveError


class Rows:
    """The experts of a batch's rows, in order.

    slots: the bank's slot of each row, 0 for the base and for experts that learn.
    modes: [matrices, rows] uint8, the `LinearMode` of each of these slots in each matrix.
    learning: for each row the name of the expert that learns, or None.
    device: where the model computes.
    after_prompt: for each row whether its expert acts after the prompt only; by default none does.
    lengths: [rows] int64, tokens of each row's prompt, or one number for all; None if nobody said.
    release: gives the slots back.

    A batch of k times as many rows gives each of them k rows in succession, as beams and returned sequences lie.
    """

    def __init__(
        self,
        slots: Sequence[int],
        modes: Tensor,
        learning: Sequence[str | None],
        device: torch.device,
        after_prompt: Sequence[bool] = (),
        lengths: Tensor | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.slots = list(slots)
        self.learning = list(learning)
        self.learns = any(name is not None for name in learning)
        self.after_prompt = list(after_prompt) if any(after_prompt) else []
        self.lengths = lengths
        self.is_remembered = False
        self._release = release
        self._whole = self
        self._modes = modes
        self._slots = torch.tensor(self.slots, dtype=torch.int32)
        self._device = device
        self._patterns = [row.tobytes() for row in modes.numpy()]
        self._groups: dict[tuple[bytes, int], tuple[TokenGroup, ...]] = {}
        self._index: dict[int, Tensor] = {}

    @property
    def whole(self) -> "Rows":
        """These rows, or those of which they are the tokens."""
        return self._whole

    def is_base(self, matrix: int, row: int) -> bool:
        """Whether a matrix computes a row that does not learn like the base model."""
        return self._patterns[matrix][row] == LinearMode.DENSE

    def groups(self, matrix: int, count: int) -> tuple[TokenGroup, ...]:
        """`count` tokens grouped by their mode in a matrix; matrices of equal modes share the groups."""
        key = pattern, _ = self._patterns[matrix], count
        found = self._groups.get(key)
        if found is None:
            modes = torch.from_numpy(np.frombuffer(pattern, dtype=np.uint8).copy())
            taken, slot = self._spread(modes, count), self._spread(self._slots, count)
            found = self._groups[key] = group_by_mode(taken, slot, self._device)
        return found

    def index(self, count: int) -> Tensor:
        """The row of each of `count` tokens, [count] int32."""
        found = self._index.get(count)
        if found is None:
            numbers = torch.arange(len(self.slots), dtype=torch.int32)
            found = self._index[count] = self._spread(numbers, count).to(self._device)
        return found

    def tokens(self, acts: Tensor, base_modes: Tensor) -> "Rows":
        """The tokens of a call as rows of their own, base rows where a row's expert does not act.

        acts: [rows, tokens] bool, whether a token lies where an expert acts that acts after the prompt only.
        base_modes: [matrices] uint8, the modes of slot 0.
        """
        count = acts.numel()
        row = self._spread(torch.arange(len(self.slots)), count)
        waits = torch.tensor(self.after_prompt)[row] & ~acts.flatten().cpu()
        slots = self._slots[row].masked_fill(waits, 0)
        modes = torch.where(waits, base_modes[:, None], self._modes[:, row])
        tokens = Rows(slots.tolist(), modes, [self.learning[r] for r in row.tolist()], self._device)
        tokens._whole = self
        return tokens

    def _spread(self, values: Tensor, count: int) -> Tensor:
        return values.repeat_interleave(count // len(self.slots))

    def check(self, where: str, rows: int, exact: bool) -> None:
        """Raises ZweaveError if the rows of a batch cannot be told apart.

        where: the batch, in words.
        exact: whether there must be one row for each expert that is named; else a multiple will do.
        """
        named = len(self.slots)
        if rows % named or (exact and named != 1 and rows != named):
            raise ZweaveError(
                f"{named} experts are named and the batch has {rows} rows{where}: name one expert for all rows, "
                "or one for each"
            )

    def check_input(self, name: str, x: Tensor, exact: bool) -> None:
        """Raises ZweaveError if the rows of a linear's input x [rows, ..., in_features] cannot be told apart."""
        if self._whole is not self:
            rows = x.shape[:-1].numel()
        elif x.dim() == 2:
            # [rows * tokens, in_features], as some models lay their tokens out.
            rows, exact = x.shape[0], False
        else:
            rows = x.shape[0] if x.dim() > 1 else 1
        self.check(f" at {name}", rows, exact)

    def note_remembered(self) -> None:
        """Keeps the slots for as long as a graph refers to these rows: its backward pass may read them again."""
        self._whole.is_remembered = True

    def close(self) -> None:
        """Gives the slots back: now, or when the last graph is gone whose backward pass may want them."""
        if self.is_remembered:
            weakref.finalize(self, self._release)
        else:
            self._release()
