"""The file of compressed LoRAs (docs/lora-compression.md)."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ...checkpoint.module_name import layer_of
from ...errors import ZweaveError, shortened
from ...io.json_text import parse_json
from ...io.tensor_file import open_tensors, save_tensors
from ...names import CompressionVariant, Scope
from ...validation import as_number, is_integer
from ..peft_directory import MAX_RANK
from .compressed import CompressedLora, CompressedLoras
from .compressed_matrix import CompressedMatrix, DiagonalMatrix, FullMatrix

FORMAT = "zweave-compressed-loras-1"
_KINDS: Mapping[str, type[CompressedMatrix]] = {"diagonal": DiagonalMatrix, "full": FullMatrix}
_KEY = re.compile(r"(?P<cluster>0|[1-9][0-9]{0,4})\.(?P<module>.+)\.(?P<part>[a-z]+)")
_NAME = re.compile(r"[A-Za-z0-9._/-]{1,255}")
_DIGEST = re.compile("[0-9a-f]{64}")
_MAX_ADAPTERS = 100_000


def is_compressed(path: object) -> bool:
    """Whether a path is a file of compressed LoRAs, whole or not."""
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return False
    try:
        with open_tensors(Path(path)) as handle:
            form = (handle.metadata() or {}).get("format", "")
    except ZweaveError:
        return False
    return isinstance(form, str) and form.startswith("zweave-compressed-loras-")


def save_compressed(compressed: CompressedLoras, path: Path) -> None:
    """Writes the file, whole or not at all; the same adapters give the same bytes."""
    tensors = {
        f"{number}.{module}.{field.name}": getattr(matrix, field.name)
        for number, matrices in enumerate(compressed.clusters)
        for module, matrix in matrices.items()
        for field in fields(matrix)
    }
    metadata = {
        "format": FORMAT,
        "variant": compressed.variant,
        "rank": str(compressed.rank),
        "seed": str(compressed.seed),
        "adapters": json.dumps([asdict(adapter) for adapter in compressed.adapters]),
    }
    if compressed.base_digest:
        metadata["base_digest"] = compressed.base_digest
    save_tensors(path, tensors, metadata)


def load_compressed(path: Path) -> CompressedLoras:
    """Reads and validates a file; no code in it is run.

    Raises ZweaveError if it is missing, truncated, of another format, or what it holds does not fit together.
    """
    with _opened(path) as (handle, metadata):
        variant: CompressionVariant = metadata.get("variant", "")
        if variant not in get_args(CompressionVariant):
            raise ZweaveError(f"the variant must be diagonal or full, not {shortened(variant)}")
        base = metadata.get("base_digest")
        if base is not None and not _DIGEST.fullmatch(base):
            raise ZweaveError(f"base_digest must be 64 hexadecimal digits, not {shortened(base)}")
        adapters = _adapters(metadata)
        return CompressedLoras(
            variant=variant,
            rank=_whole("rank", metadata.get("rank"), 1, MAX_RANK),
            seed=_whole("seed", metadata.get("seed"), 0, 2**63 - 1),
            base_digest=base,
            adapters=adapters,
            clusters=_clusters(handle, _KINDS[variant], [adapter.cluster for adapter in adapters]),
        )


def adapter_names(path: Path) -> list[str]:
    """Names of the adapters in a file, whose tensors are not looked at; ZweaveError as `load_compressed`."""
    with _opened(path) as (_, metadata):
        return [adapter.name for adapter in _adapters(metadata)]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """A file's handle and metadata; errors within are told with its path."""
    with open_tensors(path) as handle:
        try:
            metadata = handle.metadata() or {}
            form = metadata.get("format")
            if form != FORMAT:
                raise ZweaveError(f"its format is {shortened(form)}, and compressed LoRAs' is {FORMAT!r}")
            yield handle, metadata
        except ZweaveError as error:
            raise ZweaveError(f"{path}: {error}") from None


def _whole(field: str, text: object, least: int, most: int) -> int:
    if isinstance(text, str) and re.fullmatch("[0-9]{1,19}", text) and least <= int(text) <= most:
        return int(text)
    raise ZweaveError(f"{field} must be a number from {least} to {most}, not {shortened(text)}")


def _adapters(metadata: Mapping[str, Any]) -> tuple[CompressedLora, ...]:
    try:
        listed = parse_json(metadata.get("adapters", ""))
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not 0 < len(listed) <= _MAX_ADAPTERS:
        raise ZweaveError("its adapters are no list of JSON objects")
    adapters = tuple(map(_adapter, listed))
    if len({adapter.name for adapter in adapters}) < len(adapters):
        raise ZweaveError("two adapters have the same name")
    return adapters


def _adapter(entry: object) -> CompressedLora:
    if not isinstance(entry, dict) or entry.keys() != {field.name for field in fields(CompressedLora)}:
        raise ZweaveError("an entry of its adapters does not hold the fields of one")
    tokens = entry["invocation_tokens"]
    checks: dict[str, bool] = {
        "cluster": is_integer(entry["cluster"]) and 0 <= entry["cluster"] < _MAX_ADAPTERS,
        "rank": is_integer(entry["rank"]) and entry["rank"] > 0,
        "scope": entry["scope"] in get_args(Scope),
        "invocation_tokens": isinstance(tokens, list) and all(is_integer(t) and t >= 0 for t in tokens),
        "error": as_number(entry["error"]) is not None and entry["error"] >= 0,
        "name": isinstance(entry["name"], str) and _NAME.fullmatch(entry["name"]) is not None,
        "digest": isinstance(entry["digest"], str) and _DIGEST.fullmatch(entry["digest"]) is not None,
    } | {field: isinstance(entry[field], str) for field in ("description", "prompt_template")}
    for field, is_right in checks.items():
        if not is_right:
            raise ZweaveError(f"the {field} of an adapter cannot be {shortened(entry[field])}")
    return CompressedLora(**entry | {"invocation_tokens": tuple(tokens), "error": float(entry["error"])})


def _clusters(
    handle: Any, kind: type[CompressedMatrix], cluster_of: list[int]
) -> tuple[dict[str, CompressedMatrix], ...]:
    found: list[dict[str, dict[str, Tensor]]] = [{} for _ in range(1 + max(cluster_of))]
    for key in handle.keys():  # noqa: SIM118 (the handle is not a mapping)
        match = _KEY.fullmatch(key)
        if match is None or int(match["cluster"]) >= len(found):
            raise ZweaveError(f"{shortened(key)} is no part of its clusters")
        layer_of(match["module"])
        # A copy: safetensors maps the file, which may be overwritten while the adapters are in use.
        tensor = handle.get_tensor(key).clone()
        found[int(match["cluster"])].setdefault(match["module"], {})[match["part"]] = tensor
    return tuple(
        {module: _matrix(module, kind, parts, cluster_of.count(number)) for module, parts in matrices.items()}
        for number, matrices in enumerate(found)
    )


def _matrix(
    module: str, kind: type[CompressedMatrix], parts: Mapping[str, Tensor], adapters: int
) -> CompressedMatrix:
    _check_parts(module, {field.name for field in fields(kind)}, parts)
    matrix = kind(**parts)
    try:
        if len(matrix.error) != adapters:
            raise ZweaveError(f"it is of {len(matrix.error)} adapters, and its cluster has {adapters}")
        matrix.check()
    except ZweaveError as error:
        raise ZweaveError(f"{module}: {error}") from None
    return matrix


def _check_parts(module: str, wanted: Iterable[str], parts: Mapping[str, Tensor]) -> None:
    if parts.keys() != wanted:
        raise ZweaveError(f"{module} has {', '.join(sorted(parts))}, not {', '.join(sorted(wanted))}")
    for part, tensor in parts.items():
        dtype = torch.int32 if part == "owner" else torch.float32
        dimensions = 1 if part in ("owner", "error") else 2
        if tensor.dtype != dtype or tensor.dim() != dimensions:
            raise ZweaveError(f"{module}: {part} is of {tensor.dtype} {list(tensor.shape)}")
