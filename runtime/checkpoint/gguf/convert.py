"""Turns a GGUF file into a Hugging Face directory with float32 weights, and the grids that they lie on.

Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's converter.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ZweaveError
from ...io.atomic_write import atomic_directory
from ...io.cache_dir import cache_dir, disk_errors, lock, require_space
from ...io.progress import Report, progress_bar, silent
from ..model_config import ModelConfig
from ..module_name import LINEARS, module_name
from .config import gguf_config
from .grid_file import GridBlocks, has_grids, write_grids
from .grids import grid_kind
from .rope import ROPE_TENSORS
from .split import GgufModel, part_paths
from .tensor_stream import StreamedTensor, write_stream
from .tokenizer import GgufTokenizer

# Of what this package makes of a file: a directory in the cache is of one version.
VERSION = 2
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_NORMS = {
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
}
_GGUF_LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_LINEARS = dict(zip(_GGUF_LINEARS, LINEARS, strict=True))
_LAYER_TENSOR = re.compile(r"blk\.([0-9]{1,4})\.([a-z_]+)\.(weight|bias)")


def convert_cached(path: Path) -> Path:
    """The directory with the converted GGUF file; converts it into the cache on first use.

    path: of the file, or of any part of a split one.

    The entry's name is the SHA-256 of the file. Raises ZweaveError as `convert` does.
    """
    target = cache_dir() / "models" / f"gguf-{VERSION}-{_model_digest(path)}"
    if has_grids(target):
        return target
    with lock(target), progress_bar() as report:
        if not target.is_dir():
            with atomic_directory(target) as directory:
                convert(path, directory, report)
        elif not has_grids(target):
            add_grids(path, target)
    return target


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 22):
                digest.update(chunk)
            return digest.hexdigest()
    except OSError as error:
        raise ZweaveError(f"cannot read {path}: {error.strerror}") from None


def _model_digest(path: Path) -> str:
    """SHA-256 of the file, of a split model of its files' digests."""
    digests = [file_digest(part) for part in part_paths(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def convert(path: Path, directory: Path, report: Report = silent) -> None:
    """Writes config, float32 weights, their grids, tokenizer and chat template of a GGUF file into an empty directory.

    The same file gives the same bytes. Raises ZweaveError for a damaged file, an unsupported architecture,
    tokenizer or tensor type, and a full disk.
    """
    gguf = GgufModel(path)
    tokenizer = GgufTokenizer(gguf.metadata)
    raw = gguf_config(gguf) | tokenizer.token_ids()
    with disk_errors(directory):
        _write_json(directory / "config.json", raw)
        config = ModelConfig.from_directory(directory)
        if tokenizer.vocab_size > config.vocab_size:
            raise ZweaveError(
                f"{path}: {tokenizer.vocab_size} tokens, {config.vocab_size} embeddings; the file is damaged"
            )
        sources = _sources(gguf, config)
        size = sum(math.prod(shape) * 4 for shape in config.tensor_shapes().values())
        require_space(directory, size + (1 << 24))
        _write_json(directory / "generation_config.json", tokenizer.token_ids())
        _write_json(directory / "tokenizer_config.json", tokenizer.config())
        (directory / "tokenizer.json").write_text(tokenizer.build().to_str(), encoding="utf-8")
        with (directory / "model.safetensors").open("wb") as file:
            count = len(sources)
            write_stream(
                file,
                _floats(gguf, config, sources),
                {"format": "pt"},
                lambda done: report("dequantising", done, count),
            )
        write_grids(directory, _grids(gguf, config, sources))


def add_grids(path: Path, directory: Path) -> None:
    """Adds the grids of a GGUF file to the directory that it was converted to before grids were kept.

    Raises ZweaveError as `convert` does.
    """
    gguf = GgufModel(path)
    config = ModelConfig.from_directory(directory)
    write_grids(directory, _grids(gguf, config, _sources(gguf, config)))


def _sources(gguf: GgufModel, config: ModelConfig) -> dict[str, str]:
    """Hugging Face name to GGUF name of every tensor of the model, each checked for its shape."""
    found = {_hugging_face_name(name): name for name in gguf.tensors if name not in ROPE_TENSORS}
    shapes = config.tensor_shapes()
    for name, shape in shapes.items():
        if name not in found:
            raise ZweaveError(f"{gguf.path} lacks the tensor for {name}; download it again")
        if gguf.tensors[found[name]].shape != shape:
            raise ZweaveError(
                f"{gguf.path}: {found[name]} has shape {gguf.tensors[found[name]].shape}, {shape} is expected"
            )
    unknown = sorted(found[name] for name in found.keys() - shapes.keys())
    if unknown:
        raise ZweaveError(
            f"{gguf.path}: a {config.architecture} model has no tensor {unknown[0]!r}; not supported"
        )
    return {name: found[name] for name in shapes}


def _hugging_face_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None or not (match[2] in _NORMS or match[2] in _LINEARS):
        raise ZweaveError(f"the GGUF tensor {name!r} is not known to zweave: the model is not supported")
    layer, part, kind = int(match[1]), match[2], match[3]
    if part in _LINEARS:
        return f"{module_name(layer, _LINEARS[part])}.{kind}"
    return f"model.layers.{layer}.{_NORMS[part]}.{kind}"


def _floats(gguf: GgufModel, config: ModelConfig, sources: Mapping[str, str]) -> list[StreamedTensor]:
    """All tensors of the model in float32."""

    def chunks(name: str) -> Iterator[np.ndarray]:
        heads = _interleaved_heads(config, name)
        values = gguf.float_chunks(sources[name])
        if heads is None:
            return values
        whole = np.concatenate(list(values)).reshape(gguf.tensors[sources[name]].shape)
        return iter([_with_halves_apart(whole, heads)])

    return [
        StreamedTensor(name, "F32", gguf.tensors[source].shape, partial(chunks, name))
        for name, source in sources.items()
    ]


def _grids(gguf: GgufModel, config: ModelConfig, sources: Mapping[str, str]) -> list[GridBlocks]:
    """The blocks of all matrices that lie on a grid, their rows in the order of `_floats`."""

    def rows(name: str) -> np.ndarray:
        heads = _interleaved_heads(config, name)
        stored = gguf.stored_rows(sources[name])
        return stored if heads is None else _with_halves_apart(stored, heads)

    kinds = {name: grid_kind(gguf.tensors[source].kind) for name, source in sources.items()}
    return [
        GridBlocks(name, kind, gguf.stored_rows(sources[name]).shape, partial(rows, name))
        for name, kind in kinds.items()
        if kind is not None
    ]


def _interleaved_heads(config: ModelConfig, name: str) -> int | None:
    """Heads of a tensor whose rows llama.cpp has interleaved, None if it has not.

    It rotates neighbouring rows, and Hugging Face the halves of a head.
    """
    if config.architecture not in ("llama", "mistral") or ".self_attn." not in name:
        return None
    return {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])


def _with_halves_apart(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undoes the interleaving of rows [heads * head_dim, ...]."""
    return rows.reshape(heads, len(rows) // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
