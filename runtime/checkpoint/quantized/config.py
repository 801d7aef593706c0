"""What a `quantization_config` says: numbers and words, each checked as it is read."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ZweaveError, shortened
from ...validation import is_integer

_LIMIT = 1 << 20


def read_integer(config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    """A positive integer under the first of the keys that is there; ZweaveError for anything else."""
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    if not is_integer(value) or not 0 < value < _LIMIT:
        raise ZweaveError(
            f"quantization_config: {keys[0]} must be a positive integer, not {shortened(value)}"
        )
    return value


def read_group_size(config: Mapping[str, Any], *keys: str) -> int | None:
    """Inputs that share a scale, None for all of a row, which is written as -1."""
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    if value == -1 and is_integer(value):
        return None
    return read_integer(config, *keys)


def read_choice(
    config: Mapping[str, Any], *keys: str, among: Sequence[object], default: object = None
) -> Any:
    """The value under the first of the keys that is there, in lower case; ZweaveError if it is not among those."""
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    value = value.lower() if isinstance(value, str) else value
    # True is no 1 here.
    if not any(type(value) is type(each) and value == each for each in among):
        raise ZweaveError(
            f"quantization_config: {keys[0]} {shortened(value)} is not supported, only "
            f"{' and '.join(str(each) for each in among)}"
        )
    return value


def read_weight_groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How compressed-tensors quantises the weights of each group of modules; ZweaveError for anything else."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(
        isinstance(group, dict) and isinstance(group.get("weights"), dict) for group in groups.values()
    ):
        raise ZweaveError(f"quantization_config: config_groups must hold weights, not {shortened(groups)}")
    return [group["weights"] for group in groups.values()]


def read_blocks(config: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    """Rows and columns of the blocks that share a scale, None where the key is left out or null."""
    value = config.get(key)
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(is_integer(size) and 0 < size < _LIMIT for size in value)
    ):
        raise ZweaveError(f"quantization_config: {key} must be two positive integers, not {shortened(value)}")
    return value[0], value[1]
