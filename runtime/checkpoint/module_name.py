"""Names of a model's matrices, as PyTorch gives them."""

import re

from torch import nn

from ..errors import ZweaveError

# The linears of a decoder layer in the order of the forward pass, as transformers calls them.
ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
LINEARS = ATTENTION_LINEARS + MLP_LINEARS

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


def linear_of(module: str) -> str:
    """The last part of a module's name: which of LINEARS it is, in a model of transformers."""
    return module.rpartition(".")[2]


def module_name(layer: int, linear: str) -> str:
    """The name that transformers gives a layer's linear, one of LINEARS: "model.layers.0.mlp.up_proj"."""
    block = "mlp" if linear in MLP_LINEARS else "self_attn"
    return f"model.layers.{layer}.{block}.{linear}"


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces the submodule of that name in a model."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
