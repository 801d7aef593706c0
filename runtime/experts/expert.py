"""Experts: one z vector for each adapted matrix, and the file that holds them."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from safetensors.numpy import load
from torch import Tensor

from ..checkpoint.module_name import layer_of
from ..errors import ZweaveError, shortened
from ..io.json_text import parse_json
from ..io.tensor_file import TensorBytes, open_tensors, save_tensors
from ..names import Scope as Scope
from ..text.prompt_template import PromptTemplate
from ..validation import has_lone_surrogate
from .bundled import expert_file
from .support import Support

FORMAT = "zweave-expert-1"
_PLAIN = ("base_digest", "support", "description")
_FIELDS = {"format", "scope", "first_layer", "renormalise", "training", "prompt_template", *_PLAIN}


@dataclass(frozen=True, slots=True, eq=False)
class Expert:
    """Scales of singular values: W' = U diag(sigma * z) V^T for each adapted matrix.

    z: adapted matrix -> [R] float32, components in descending order of singular value.
    base_digest: digest of the weights it was trained for (`Checkpoint.digest`), if known.
    scope: "always", or "after_prompt", which acts only from the last header of the chat template on.
    first_layer: it adapts nothing below this layer.
    support: which components may differ from 1: "full", "leading:K", "leading:R/8" (an eighth of each
        matrix's), "sparse:K" or "sparse:R/8".
    renormalise: whether W' is multiplied by sum(sigma) / sum(sigma * z).
    description: a text for people.
    training: a JSON object that says how it was made.
    prompt_template: the prompt that it was trained on, which a bare text is put into; None if that is not known.
    Raises ZweaveError if a name, shape, type or value cannot be right.
    """

    z: Mapping[str, Tensor]
    base_digest: str | None = None
    scope: Scope = "always"
    first_layer: int = 0
    support: str = "full"
    renormalise: bool = False
    description: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    prompt_template: PromptTemplate | None = None

    def __post_init__(self) -> None:
        if not self.z:
            raise ZweaveError("the expert holds no z vectors")
        if self.scope not in get_args(Scope):
            raise ZweaveError(
                f"the scope must be one of {', '.join(get_args(Scope))}, not {shortened(self.scope)}"
            )
        support = Support.parse(self.support)
        if has_lone_surrogate(self.description):
            raise ZweaveError("the description holds a lone surrogate, which no file can: leave it out")
        if self.first_layer < 0:
            raise ZweaveError(f"first_layer must be at least 0, not {self.first_layer}")
        for module, z in self.z.items():
            layer = layer_of(module)
            if layer < self.first_layer:
                raise ZweaveError(f"{module} lies below first_layer = {self.first_layer}")
            if z.dtype != torch.float32 or z.dim() != 1 or z.numel() == 0:
                raise ZweaveError(f"{module}: z must be a vector of float32, not {z.dtype} {tuple(z.shape)}")
            # NumPy: it checks so short a vector five times as fast as PyTorch.
            if not np.isfinite(z.detach().cpu().numpy()).all():
                raise ZweaveError(f"{module}: z holds NaN or infinity")
            support.check(module, z.detach().cpu().numpy())

    @property
    def digest(self) -> str:
        """sha256 of everything that changes what the expert computes: z, scope and renormalisation."""
        hashed = hashlib.sha256(f"{FORMAT} {self.scope} {self.renormalise}".encode())
        for module in sorted(self.z):
            z = self.z[module].detach().cpu().contiguous()
            hashed.update(f"\n{module} {z.numel()}\n".encode())
            hashed.update(z.numpy().tobytes())
        return hashed.hexdigest()

    def check(self, shapes: Mapping[str, tuple[int, ...]], base_digest: str | None = None) -> None:
        """Raises ZweaveError unless the expert fits a model.

        shapes: the model's adaptable matrices, (out_features, in_features) or (rank,) each.
        base_digest: of the model's weights; compared if both are known.
        """
        if base_digest and self.base_digest and base_digest != self.base_digest:
            raise ZweaveError(
                f"the expert was trained for other weights (base {self.base_digest[:12]!r}, "
                f"the model's is {base_digest[:12]!r})"
            )
        for module, z in self.z.items():
            if module not in shapes:
                raise ZweaveError(f"the model has no matrix {module}: the expert is for another model")
            rank = min(shapes[module])
            if z.numel() != rank:
                raise ZweaveError(
                    f"{module}: z has {z.numel()} values and the matrix has rank {rank}: "
                    "the expert is for another model"
                )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Expert":
        """Reads and validates an expert file (docs/experts.md); no code in it is run.

        path: the file, or the name of an expert that comes with zweave.

        Metadata fields that the format does not know are kept in `training`.
        """
        path = expert_file(path)
        with open_tensors(path) as handle:
            try:
                return cls._read(handle)
            except ZweaveError as error:
                raise ZweaveError(f"{path}: {error}") from None

    @classmethod
    def from_bytes(cls, data: bytes) -> "Expert":
        """Reads and validates the bytes of an expert file, which need not lie on a disk."""
        return cls._read(TensorBytes(data))

    @classmethod
    def _read(cls, handle: Any) -> "Expert":
        z = _read_z(handle)
        return cls(z=z, **_read_metadata(handle.metadata() or {}))

    def save(self, path: str | Path, half: bool = False) -> None:
        """Writes the expert file, whole or not at all.

        half: stores z - 1 in float16, half the size with an error of 2e-4 of z - 1.
        Raises ZweaveError if z - 1 is too large for float16 or the file cannot be written.
        """
        tensors = {}
        for module, z in self.z.items():
            z = z.detach().cpu()
            if half:
                tensors[f"{module}.z_minus_1"] = (z - 1).half()
                if not tensors[f"{module}.z_minus_1"].isfinite().all():
                    raise ZweaveError(f"{module}: z - 1 is too large for float16: save it in full precision")
            else:
                tensors[f"{module}.z"] = z.contiguous().clone()
        save_tensors(Path(path), tensors, self._metadata())

    def _metadata(self) -> dict[str, str]:
        metadata = {
            "format": FORMAT,
            "scope": self.scope,
            "first_layer": str(self.first_layer),
            "support": self.support,
            "renormalise": "true" if self.renormalise else "false",
            "description": self.description,
            "training": json.dumps(dict(self.training)),
        }
        if self.base_digest:
            metadata["base_digest"] = self.base_digest
        if self.prompt_template is not None:
            metadata["prompt_template"] = self.prompt_template.to_json()
        return metadata


def z_of(data: bytes) -> dict[str, Tensor]:
    """z of each matrix in the bytes of an expert file that was checked before."""
    z = {}
    for key, values in load(data).items():
        module, _, kind = key.rpartition(".")
        z[module] = torch.from_numpy(values if kind == "z" else values.astype(np.float32) + 1)
    return z


def _read_z(handle: Any) -> dict[str, Tensor]:
    z = {}
    for key in handle.keys():  # noqa: SIM118 (the handle is not a mapping)
        module, _, kind = key.rpartition(".")
        expected = {"z": "F32", "z_minus_1": "F16"}.get(kind)
        if expected is None:
            hint = ": give a LoRA's directory, not a file in it" if ".lora_" in key else ""
            raise ZweaveError(f"{key!r} ends in neither .z nor .z_minus_1: this is not an expert file{hint}")
        layer_of(module)
        view = handle.get_slice(key)
        if view.get_dtype() != expected or len(view.get_shape()) != 1:
            found = f"{view.get_dtype()} {view.get_shape()}"
            raise ZweaveError(f"{key} must be a vector of {expected}, not {found}")
        if module in z:
            raise ZweaveError(f"{module} is there both as .z and as .z_minus_1")
        # A copy: safetensors maps the file, which may be overwritten while the expert is in use.
        stored = handle.get_tensor(key).clone()
        z[module] = stored if kind == "z" else stored.float() + 1
    return z


def _read_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    form = metadata.get("format", FORMAT)
    if form.startswith("zweave-") and form != FORMAT:
        raise ZweaveError(f"the file's format is {shortened(form)}, this zweave reads {FORMAT!r}")
    known: dict[str, Any] = {key: metadata[key] for key in _PLAIN if key in metadata}
    if "scope" in metadata:
        # Older files go on after a comma with how many tokens it was trained on.
        known["scope"] = cast(Scope, metadata["scope"].partition(",")[0].strip())
    if "first_layer" in metadata:
        if not re.fullmatch("[0-9]{1,4}", metadata["first_layer"]):
            raise ZweaveError(f"first_layer must be a number, not {metadata['first_layer'][:40]!r}")
        known["first_layer"] = int(metadata["first_layer"])
    if "renormalise" in metadata:
        if metadata["renormalise"] not in ("true", "false"):
            raise ZweaveError(f"renormalise must be true or false, not {metadata['renormalise'][:40]!r}")
        known["renormalise"] = metadata["renormalise"] == "true"
    if "prompt_template" in metadata:
        known["prompt_template"] = PromptTemplate.from_json(metadata["prompt_template"])
    others = {key: text for key, text in metadata.items() if key not in _FIELDS}
    known["training"] = others | _read_training(metadata.get("training", "{}"))
    return known


def _read_training(text: str) -> dict[str, Any]:
    try:
        training = parse_json(text)
    except ValueError:
        training = None
    if not isinstance(training, dict):
        raise ZweaveError("the training record is not a JSON object")
    return training
