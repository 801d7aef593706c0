"""What a matrix's inputs look like on a text: their second moments."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.module_name import linear_of
from ..errors import ZweaveError
from ..text.tokenizer import Tokenizer

SHIPPED = Path(__file__).parent / "data" / "calibration.txt"
_CHUNK = 128
# Linears that have the same inputs as another one of their block.
_SAME_INPUTS = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def read_tokens(path: Path, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text, none of them special; ZweaveError for a file that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ZweaveError(f"cannot read {path}: {reason}") from None
    return tokenizer.encode(text, special=False, escape_special=True)


def read_chunks(path: Path, tokenizer: Tokenizer, longest: int) -> tuple[list[list[int]], list[list[int]]]:
    """A text in pieces of equal length: those to calibrate with, and every other one, to measure with.

    longest: tokens that the model takes.
    Raises ZweaveError for a file that cannot be read, or is too short for two pieces.
    """
    tokens, size = read_tokens(path, tokenizer), min(_CHUNK, longest)
    chunks = [tokens[start : start + size] for start in range(0, len(tokens) - size + 1, size)]
    if len(chunks) < 2:
        raise ZweaveError(f"{path} has {len(tokens)} tokens: calibration wants {2 * size} or more")
    return chunks[::2], chunks[1::2]


def input_of(module: str) -> str:
    """The module of the same block whose inputs stand for a module's."""
    linear = linear_of(module)
    return module.removesuffix(linear) + _SAME_INPUTS.get(linear, linear)


@torch.inference_mode()
def second_moments(model: Any, chunks: Sequence[Sequence[int]], modules: Iterable[str]) -> dict[str, Tensor]:
    """The mean of x x^T over the inputs x of each module, [in_features, in_features] in float32, by `input_of`."""
    sums: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        rows = x.detach().flatten(0, -2).float()
        product = rows.T @ rows
        sums[name] = sums[name].add_(product) if name in sums else product

    def hook(name: str) -> Any:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            add(name, inputs[0])

        return before

    names = dict.fromkeys(map(input_of, modules))
    hooks = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        for chunk in chunks:
            model(torch.tensor([chunk]), use_cache=False, logits_to_keep=1)
    finally:
        for each in hooks:
            each.remove()
    return {name: total / sum(map(len, chunks)) for name, total in sums.items()}
