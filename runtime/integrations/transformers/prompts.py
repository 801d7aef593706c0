"""Where the prompts of a batch end, for experts that act after the prompt only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import ZweaveError


@dataclass(slots=True)
class Prompts:
    """What a call of `generate` was given.

    count: number of prompts.
    width: tokens of each, with padding.
    lengths: [rows] int64, tokens of each row's prompt without padding; known from the first call of the model on.
    """

    count: int
    width: int
    lengths: Tensor | None = None


def acting_tokens(
    tokens: Tensor | None, arguments: Mapping[str, Any], lengths: Tensor | None, prompts: Prompts | None
) -> Tensor:
    """Whether each token of a model's call lies where an expert acts: from the last token of its prompt on.

    The output of a prompt's last token gives the answer's first.

    tokens: [rows, tokens, ...], the model's input.
    arguments: of the call, by name.
    lengths: tokens of each row's prompt without padding, [rows] int64 or one for all; None where `generate` says.
    prompts: those of the running `generate`.
    Returns [rows, tokens] bool. Raises ZweaveError if nobody says where the prompts end.
    """
    if tokens is None or tokens.dim() < 2:
        raise ZweaveError(
            "an expert in use acts after the prompt only, which wants input_ids or inputs_embeds"
        )
    if lengths is None:
        lengths = _generated_lengths(tokens, arguments, prompts)
    if len(tokens) % len(lengths) or (prompts is None and len(lengths) not in (1, len(tokens))):
        raise ZweaveError(
            f"prompt_lengths has {len(lengths)} numbers and the batch {len(tokens)} rows: give one for each"
        )
    each = lengths.to(tokens.device).repeat_interleave(len(tokens) // len(lengths))
    return _positions(tokens, arguments) >= each[:, None] - 1


def _generated_lengths(tokens: Tensor, arguments: Mapping[str, Any], prompts: Prompts | None) -> Tensor:
    """Lengths of the prompts of the running `generate`, from its first call of the model."""
    if prompts is None:
        raise ZweaveError(
            "an expert in use acts after the prompt only, and a call of the model does not say where that ends: "
            "give use(..., prompt_lengths=...), or call generate"
        )
    if prompts.lengths is None:
        past = _past(arguments)
        if not past < prompts.width <= past + tokens.shape[1]:
            raise ZweaveError(
                "an expert in use acts after the prompt only, and generate does not begin with the whole prompt: "
                "give use(..., prompt_lengths=...)"
            )
        # Behind the prompt there may be candidates of assisted decoding.
        prompts.lengths = _positions(tokens, arguments)[:, prompts.width - 1 - past] + 1
    return prompts.lengths


def _positions(tokens: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The position of each token in its own row, without padding, [rows, tokens]."""
    rows, count = tokens.shape[:2]
    mask = _mask(tokens, arguments)
    if mask is not None:
        return (mask.cumsum(1) - 1)[:, -count:]
    given = arguments.get("position_ids")
    if isinstance(given, Tensor) and given.dim() == 2:
        return given.expand(rows, count)
    past = _past(arguments)
    return torch.arange(past, past + count, device=tokens.device).expand(rows, count)


def _mask(tokens: Tensor, arguments: Mapping[str, Any]) -> Tensor | None:
    """The attention mask, [rows, tokens so far] of 0 and 1, if the call has one of this form."""
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    return mask.long() if mask.shape[1] == _past(arguments) + tokens.shape[1] else None


def _past(arguments: Mapping[str, Any]) -> int:
    """Number of tokens, with padding, whose keys and values are cached."""
    past = arguments.get("past_key_values")
    return int(past.get_seq_length()) if past is not None else 0
