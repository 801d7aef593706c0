"""Finds the linears of a loaded model that experts can adapt."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...checkpoint.module_name import layer_of
from ...errors import ZweaveError
from .linear import AttachedLinear, Target

DTYPES = (torch.bfloat16, torch.float32)
# Mixture-of-experts layers regroup their tokens, so that the batch row of a token is unknown inside.
_ROUTED = "experts"

# Where a compiled module keeps the one that it was made of.
COMPILED = "_orig_mod"


def find_targets(model: nn.Module, wanted: Sequence[str] | None) -> dict[str, Target]:
    """Finds the linears to adapt, by name, in the model's order.

    wanted: suffixes of their names, such as "q_proj" or "mlp.fc1"; None for every nn.Linear and Conv1D in a numbered
        layer, except inside mixture-of-experts layers.
    Raises ZweaveError if there is none, if one cannot be adapted (quantised, without data, of another class or
        dtype), if they lie on several devices, or if the model is attached already.
    """
    paths: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AttachedLinear):
            raise ZweaveError("the model has experts attached: load more into them, or detach them first")
        paths.setdefault(id(module), []).append(path)
        modules[id(module)] = module
    prefix = _prefix(model)
    targets = {}
    for key, module in modules.items():
        name = prefix + paths[key][0].replace(f"{COMPILED}.", "")
        if _is_wanted(name, wanted) and _is_linear(name, module, named=wanted is not None):
            targets[name] = Target(name, tuple(paths[key]), module, _is_conv1d(module))
    if not targets:
        which = f"whose name ends in {' or '.join(wanted)}" if wanted else "in a numbered layer"
        raise ZweaveError(f"the model has no linear {which}: there is nothing to attach experts to")
    devices = {str(target.weight.device) for target in targets.values()}
    if len(devices) > 1:
        raise ZweaveError(f"the model lies on {', '.join(sorted(devices))}: load it on one device")
    return targets


def _prefix(model: nn.Module) -> str:
    """The prefix that expert files have and a model without a head lacks, such as "model."; else ""."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and not hasattr(model, prefix) else ""


def _is_wanted(name: str, wanted: Sequence[str] | None) -> bool:
    try:
        layer_of(name)
    except ZweaveError:
        return False
    if wanted is None:
        return _ROUTED not in name.split(".")
    return any(f".{name}".endswith(f".{end}") for end in wanted)


def _is_linear(name: str, module: nn.Module, named: bool) -> bool:
    """Whether a module is a linear that can be adapted.

    named: whether the caller named it.
    Raises ZweaveError for a linear that cannot be adapted, which must not be left out in silence.
    """
    if hasattr(module, "base_layer"):
        raise ZweaveError(f"{name} carries an adapter of PEFT: merge_and_unload it first")
    weight = getattr(module, "weight", None)
    is_plain = type(module) is nn.Linear or _is_conv1d(module)
    is_like = is_plain or isinstance(module, nn.Linear) or hasattr(module, "qweight")
    if not is_like:
        if named:
            raise ZweaveError(f"{name} is a {type(module).__name__}, not a linear: name linears")
        return False
    if _is_quantised(weight):
        raise ZweaveError(
            f"{name} is quantised ({type(module).__name__}): load the model without quantization_config, "
            "in bfloat16 or float32"
        )
    assert isinstance(weight, Tensor)
    if weight.is_meta:
        raise ZweaveError(f"{name} has no data (meta device): load the model's weights first")
    if not is_plain:
        if named:
            raise ZweaveError(f"{name} is a {type(module).__name__} with a forward pass of its own")
        return False
    if weight.dtype not in DTYPES:
        raise ZweaveError(f"{name} is {weight.dtype}: load the model in bfloat16 or float32")
    return True


def _is_quantised(weight: object) -> bool:
    """Whether a weight is missing, of a special tensor class, or of at most a byte a value."""
    if not isinstance(weight, Tensor) or type(weight.data) is not Tensor:
        return True
    return not weight.is_floating_point() or weight.element_size() < 2


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return type(module) is Conv1D


def shapes_of(targets: Mapping[str, Target]) -> dict[str, tuple[int, int]]:
    """Name to (out_features, in_features)."""
    return {name: target.shape for name, target in targets.items()}
