"""Names of a model's matrices, as PyTorch gives them."""

import re

from torch import nn

from ..errors import ZweaveError

# A path of identifiers and numbers that ends in an identifier; the first number is the layer's.
_NUMBER = "(?:0|[1-9][0-9]{0,3})"
_WORD = "[A-Za-z_][A-Za-z0-9_]{0,99}"
_MODULE = re.compile(
    rf"(?:{_WORD}\.){{0,16}}({_NUMBER})(?:\.(?:{_WORD}|{_NUMBER})){{0,16}}\.(?!weight$|bias$){_WORD}"
)


def layer_of(module: str) -> int:
    """Index of the layer that an adapted matrix lies in: the first number in its name.

    module: as PyTorch names it, for example "model.layers.0.mlp.up_proj" or "transformer.h.0.attn.c_attn".
    Raises ZweaveError for a name without a layer, or that no module can have.
    """
    match = _MODULE.fullmatch(module)
    if match is None:
        raise ZweaveError(f"{module!r} is not a matrix that an expert can adapt")
    return int(match[1])


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the submodule of that name in a model."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
