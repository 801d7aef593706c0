"""Which rows the linears of a model compute under."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import ZweaveError
from .prompts import Prompts, acting_tokens
from .recompute import backward_pass, recall, remember
from .rows import Rows

# Names of a model's main argument.
_INPUTS = ("input_ids", "inputs_embeds")


@dataclass(slots=True, eq=False)
class Router:
    """The rows of the current forward pass, which all linears of a model read.

    base_modes: [matrices] uint8, the modes of the base model's slot.
    learnt: the experts that learn, by name.
    rows: the rows of the innermost `use`, None for the base model.
    otherwise: the rows outside of `use`.
    owner: the thread inside `use`.
    depth: how many nested `use` it is inside of.
    entered_in: the backward pass inside which the innermost `use` was entered, None for outside of one.
    call: the rows of the running call of the model, if it has any.
    prompts: those of the running `generate`.
    """

    base_modes: Tensor
    learnt: dict[str, int] = field(default_factory=dict)
    rows: Rows | None = None
    otherwise: Rows | None = None
    owner: int | None = None
    depth: int = 0
    entered_in: int | None = None
    call: Rows | None = None
    prompts: Prompts | None = None

    @contextmanager
    def using(self, rows: Rows | None) -> Iterator[None]:
        """Makes rows the current ones; ZweaveError inside another thread's `use`."""
        thread, backward = threading.get_ident(), backward_pass()
        # A backward pass may have a thread of its own, for which the one inside `use` waits.
        if self.depth and self.owner != thread and backward is None:
            raise ZweaveError(
                "another thread uses the model's experts: wait for it, or give it a model of its own"
            )
        before = self.rows, self.owner, self.entered_in
        self.rows, self.owner, self.entered_in = rows, thread, backward
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            self.rows, self.owner, self.entered_in = before if self.depth else (self.otherwise, None, None)

    def current(self) -> Rows | None:
        """The rows of a linear's call, None for the base model.

        Raises ZweaveError if an expert acts after the prompt only and the model was not called as a whole.
        """
        if self.call is not None:
            return self.call
        rows = self._chosen()
        if rows is not None and rows.after_prompt:
            raise ZweaveError(
                "an expert in use acts after the prompt only: call the model itself, not a part of it"
            )
        return rows

    def note(self, y: Tensor, rows: Rows | None) -> None:
        """Has the backward pass of a linear's output know under which rows it was computed."""
        if y.requires_grad:
            remember(y, self, rows)
            if rows is not None:
                rows.note_remembered()

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """Begins a call of the model, whose arguments say how many rows there are and where a prompt ends.

        Raises ZweaveError if the rows do not fit the experts, or the end of a prompt is not known.
        """
        rows = self._chosen()
        if rows is None:
            return
        rows = rows.whole
        tokens = next((arguments[name] for name in _INPUTS if isinstance(arguments.get(name), Tensor)), None)
        if tokens is not None and tokens.dim() > 1:
            rows.check("", len(tokens), exact=self.prompts is None)
        if rows.after_prompt:
            acts = acting_tokens(tokens, arguments, rows.lengths, self.prompts)
            if not acts.all():
                rows = rows.tokens(acts, self.base_modes)
        self.call = rows

    def end(self) -> None:
        """Ends a call of the model."""
        self.call = None

    @contextmanager
    def generating(self, prompts: Prompts) -> Iterator[None]:
        """A call of `generate`, which may give each prompt several rows; ZweaveError if the experts do not fit."""
        if self.rows is not None:
            self.rows.check("", prompts.count, exact=True)
        before, self.prompts = self.prompts, prompts
        try:
            yield
        finally:
            self.prompts = before

    def _chosen(self) -> Rows | None:
        """The rows of `use`, or of the forward pass that a backward pass repeats.

        Raises ZweaveError if an expert that learned then does so no longer.
        """
        backward = backward_pass() if torch.is_grad_enabled() else None
        if backward is None or backward == self.entered_in:
            return self.rows
        found: Rows | None = recall(self)
        for name in found.learning if found is not None else ():
            if name is not None and name not in self.learnt:
                raise ZweaveError(
                    f"the expert {name!r} was frozen or unloaded between a forward pass and its backward pass: "
                    "do that after the backward pass"
                )
        return found
