"""Reads a LoRA as PEFT saves it: a directory with adapter_config.json and adapter_model.safetensors."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError, shortened
from ..io.json_text import parse_json
from ..io.tensor_file import read_tensors
from ..validation import as_number, is_integer
from .lora import Lora, LoraPair
from .lora_record import LORA_RECORD, LoraRecord

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# All that `read_peft` reads.
ADAPTER_FILES = (CONFIG, WEIGHTS, LORA_RECORD)
MAX_RANK = 4096
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B)\.weight")
# What changes more than a product of two thin matrices, or other matrices than ours: field -> why it cannot be served.
_REFUSED = {
    "use_dora": "DoRA scales whole rows of the weights: merge it into a model, or train it without use_dora",
    "use_qalora": "QA-LoRA pools the inputs of lora_A",
    "use_bdlora": "block-diagonal LoRA splits its matrices",
    "lora_bias": "its lora_B has biases: train it without lora_bias",
    "modules_to_save": "it brings whole modules of its own: train it without modules_to_save",
    "trainable_token_indices": "it changes embeddings: train it without trainable_token_indices",
    "target_parameters": "it adapts parameters that are no linear layers",
    "layer_replication": "it replicates layers, so that the model is another one",
    "arrow_config": "Arrow chooses among adapters for each token",
    "kasa_config": "KaSA changes the weights of the base model",
    "monteclora_config": "MonteCLoRA samples its adapters",
    "velora_config": "VeLoRA changes how the adapter is trained and saved",
}
# Initialisations that change the base model's weights: the adapter saved beside them is not for the original ones.
_RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga")


def lora_directory(path: object) -> Path | None:
    """The path if it is a directory that PEFT has saved to; not one of an expert that was exported for vLLM."""
    if not isinstance(path, str | PathLike) or not os.path.isfile(Path(path) / CONFIG):
        return None
    config = _json(Path(path) / CONFIG)
    return None if isinstance(config, dict) and "zweave" in config else Path(path)


def read_peft(directory: Path) -> Lora:
    """The LoRA in a directory that PEFT's `save_pretrained` or `zweave train` has written; no code in it is run.

    Raises ZweaveError if a file is missing, truncated or not what its name says, the adapter is of a kind that
    cannot be served as it is, or its tensors do not fit each other.
    """
    config_file, weights_file = directory / CONFIG, directory / WEIGHTS
    if not config_file.is_file():
        raise ZweaveError(f"{directory}: holds no {CONFIG}: give a directory that PEFT has saved a LoRA to")
    if not weights_file.is_file():
        pickled = (directory / "adapter_model.bin").exists()
        why = ", and its weights are a pickle, which can run code" if pickled else ""
        raise ZweaveError(f"{directory}: holds no {WEIGHTS}{why}: save it again as safetensors")
    try:
        config = peft_config(config_file)
        tensors = _tensors(weights_file)
        invocation = _invocation_tokens(config)
        record = LoraRecord.read(directory) or LoraRecord(description=_text(config.get("description")))
        return Lora(
            pairs=dict(_pairs(tensors, config)),
            scope="after_prompt" if invocation else record.scope,
            invocation_tokens=invocation,
            description=record.description,
            prompt_template=record.prompt_template,
        )
    except ZweaveError as error:
        raise ZweaveError(f"{directory}: {error}") from None


def _json(file: Path) -> object:
    """What a file of JSON holds; None if it cannot be read."""
    try:
        return parse_json(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None


def peft_config(file: Path) -> Mapping[str, Any]:
    """The fields of an adapter_config.json; ZweaveError if the adapter is of a kind that cannot be served."""
    config = _json(file)
    if not isinstance(config, dict):
        raise ZweaveError(f"{CONFIG} is not a JSON object")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ZweaveError(f"peft_type must be LORA, not {shortened(kind)}")
    for field, why in _REFUSED.items():
        if config.get(field):
            raise ZweaveError(f"{field} is set, and {why}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_RESIDUAL):
        raise ZweaveError(
            f"init_lora_weights is {shortened(start)}, which changes the base model's weights: save it with "
            "path_initial_model_for_weight_conversion, which makes it an adapter of the original ones"
        )
    if config.get("bias", "none") != "none":
        raise ZweaveError(f"bias is {shortened(config['bias'])}: only adapters without biases are served")
    return config


def _tensors(file: Path) -> dict[str, dict[str, Tensor]]:
    """Module -> "lora_A" and "lora_B"."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(file).items():
        match = _KEY.fullmatch(key.removeprefix(_PREFIX))
        if match is None:
            raise ZweaveError(f"{shortened(key)} is neither lora_A nor lora_B of a linear layer")
        layer_of(match["module"])
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ZweaveError(f"{key} is of {tensor.dtype}, not of float32, bfloat16 or float16")
        found.setdefault(match["module"], {})[match["part"]] = tensor
    return found


def _pairs(
    tensors: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]
) -> Iterator[tuple[str, LoraPair]]:
    alphas, ranks = _pattern(config, "alpha_pattern"), _pattern(config, "rank_pattern")
    for module, parts in tensors.items():
        if len(parts) != 2:
            (only,) = parts
            raise ZweaveError(f"{module} has {only} and not its other half")
        a, b = parts["lora_A"], parts["lora_B"]
        if config.get("fan_in_fan_out"):
            raise ZweaveError("fan_in_fan_out is set, which is for the Conv1D layers of other models")
        pair = LoraPair(a, b, 1.0)
        said = _of_pattern(ranks, module, _number(config, "r"))
        if pair.a.dim() == 2 and said != pair.rank:
            raise ZweaveError(f"{module} has rank {pair.rank}, and {CONFIG} says {said:g}")
        if not 0 < said <= MAX_RANK:
            raise ZweaveError(f"{module}: its rank must be from 1 to {MAX_RANK}, not {said:g}")
        alpha = _of_pattern(alphas, module, _number(config, "lora_alpha"))
        scaling = alpha / (math.sqrt(said) if config.get("use_rslora") else said)
        yield module, LoraPair(a, b, scaling)


def _number(config: Mapping[str, Any], field: str) -> float:
    number = as_number(config.get(field))
    if number is None:
        raise ZweaveError(f"{field} must be a number, not {shortened(config.get(field))}")
    return float(number)


def _pattern(config: Mapping[str, Any], field: str) -> Mapping[str, float]:
    pattern = config.get(field) or {}
    if not isinstance(pattern, dict) or any(as_number(value) is None for value in pattern.values()):
        raise ZweaveError(f"{field} must be an object of numbers")
    return {key: float(value) for key, value in pattern.items()}


def _of_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """The number of the first key that a module's name ends in, as PEFT looks it up; a key may be an expression."""
    for key, value in pattern.items():
        # PEFT: `re.match(rf"(.*\.)?({key})$", module)`. Expressions of a stranger's file are not run here.
        if module == key or module.endswith(f".{key}"):
            return value
        if not re.fullmatch(r"[\w.\\^$-]*", key):
            raise ZweaveError(f"the pattern {shortened(key)} is an expression: give names of modules")
        try:
            if re.fullmatch(rf"(?:.*\.)?(?:{key})", module):
                return value
        except re.error:
            raise ZweaveError(
                f"the pattern {shortened(key)} is no valid expression: give names of modules"
            ) from None
    return default


def _invocation_tokens(config: Mapping[str, Any]) -> tuple[int, ...]:
    tokens = config.get("alora_invocation_tokens") or []
    if not isinstance(tokens, list) or not all(is_integer(token) and token >= 0 for token in tokens):
        raise ZweaveError("alora_invocation_tokens must be a list of token ids")
    return tuple(tokens)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
