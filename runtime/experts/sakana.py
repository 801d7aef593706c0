"""Imports experts of Sakana's self-adaptive-llms.

Source: github.com/SakanaAI/self-adaptive-llms, `policy/base.py` and `utils.py`. Their files hold p, not z,
and for the MLP matrices only: z = bfloat16(sigmoid(p)) * max_mult, and
W' = U diag(sigma z) V^T * sum(sigma) / sum(sigma z).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ZweaveError
from .expert import Expert

_POLICY_PREFIX = "learnable_params_module_list."


def load_sakana(
    path: str | Path,
    shapes: Mapping[str, tuple[int, int]],
    *,
    max_mult: float = 1.0,
    base_digest: str | None = None,
) -> Expert:
    """Reads `policy_params.pt` or `learnable_params.pt`; unpickles tensors only, so that no code of the file runs.

    shapes: the model's adaptable matrices, (out_features, in_features) each, in layer order.
    max_mult: of the trained policy; the files do not hold it.
    Raises ZweaveError if the file is neither, holds more than tensors, or does not fit the model.
    """
    path = Path(path)
    modules = [module for module in shapes if ".mlp." in module]
    try:
        learnt = _by_module(_load_tensors(path), modules)
        z = {module: _scale(learnt[module], max_mult) for module in modules}
        expert = Expert(
            z=z,
            base_digest=base_digest,
            renormalise=True,
            description=f"imported from Sakana's {path.name}",
            training={"source": path.name, "max_mult": max_mult},
        )
        expert.check(shapes)
    except ZweaveError as error:
        raise ZweaveError(f"{path}: {error}") from None
    return expert


def _scale(learnt: Tensor, max_mult: float) -> Tensor:
    # Their mask is rounded to bfloat16 before and after the product, so ours is too.
    return (torch.sigmoid(learnt).to(torch.bfloat16) * max_mult).float()


def _by_module(state: Mapping[str, Tensor], modules: list[str]) -> dict[str, Tensor]:
    if "adaptive_weights" in state:
        raise ZweaveError(
            "this is a weighted combination of experts: "
            "import each of them and combine them with `zweave expert mix`"
        )
    # A policy's state lists its parameters in the order of the model's state dict, filtered by "mlp".
    listed = {f"{_POLICY_PREFIX}{index}": module for index, module in enumerate(modules)}
    named = {f"{module}.weight": module for module in modules}
    names = listed if any(key.startswith(_POLICY_PREFIX) for key in state) else named
    missing = [key for key in names if key not in state]
    surplus = [key for key in state if key not in names]
    if missing or surplus:
        what = f"lacks {missing[0]!r}" if missing else f"holds {surplus[0]!r} besides"
        raise ZweaveError(
            f"{what}: not an expert of a model with {len(modules)} MLP matrices ({len(state)} entries found)"
        )
    return {module: state[key] for key, module in names.items()}


def _load_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ZweaveError("there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ZweaveError(f"cannot be read ({error.strerror or error})") from None
    except Exception:
        # Whatever a malformed or malicious pickle makes the restricted unpickler raise.
        raise ZweaveError("is not a PyTorch file of tensors only; nothing in it was run") from None
    if not isinstance(state, Mapping) or not state:
        raise ZweaveError("holds no dictionary of tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            raise ZweaveError(f"the entry {str(key)[:60]!r} is not a floating-point tensor")
    return {key: value.detach() for key, value in state.items()}
