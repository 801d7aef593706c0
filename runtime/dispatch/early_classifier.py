"""A classifier of prompts by the mean hidden state of an early layer: a few layers and one small product."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.engine import Engine
from ..errors import ZweaveError, shortened
from ..io.json_text import parse_json
from ..io.tensor_file import open_tensors, save_tensors
from ..validation import is_integer
from .open_set import OpenSet

FORMAT = "zweave-early-classifier-1"
OPEN_FORMAT = "zweave-early-classifier-2"  # with an open set
OTHER = "other"  # the label of prompts that are of no task
_OPEN_TENSORS = {field.name for field in fields(OpenSet)}


@dataclass(frozen=True, slots=True, eq=False)
class EarlyClassifier:
    """Logistic regression on an early layer's mean state: p = softmax(W h + b).

    h is the mean of the base model's states that enter a layer, over the prompt's tokens before the assistant's
    header: those that a first pass reads (docs/dispatch.md).

    labels: what it tells apart, in the order of the rows of `weight`.
    layer: whose input is read, from 1 on.
    weight: W [labels, hidden], float32.
    bias: b [labels], float32.
    base_digest: digest of the weights that it was trained on, if known.
    training: how it was made, a JSON object.
    open_set: how far a state lies from those of training, if that counts: then a state that is unknown with probability
        u is OTHER, one of the labels, with probability u + (1 - u) p.
    """

    labels: tuple[str, ...]
    layer: int
    weight: Tensor
    bias: Tensor
    base_digest: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    open_set: OpenSet | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or self.layer < 1:
            raise ZweaveError("a classifier needs two labels or more, and a layer from 1 on")
        shapes = (self.weight.dim(), self.weight.shape[0], tuple(self.bias.shape))
        if shapes != (2, len(self.labels), (len(self.labels),)):
            raise ZweaveError(f"the classifier's weights do not fit its {len(self.labels)} labels")
        for tensor in (self.weight, self.bias):
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise ZweaveError("the classifier's weights must be finite float32")
        if self.open_set is not None:
            if OTHER not in self.labels:
                raise ZweaveError(f"a classifier with an open set needs the label {OTHER!r}")
            if self.open_set.scale.numel() != self.weight.shape[1]:
                raise ZweaveError("the classifier's open set is of another width than its weights")

    def probabilities(self, states: Tensor) -> Tensor:
        """states: [prompts, hidden] float32. Returns [prompts, labels]; ZweaveError if the model has another width."""
        if states.shape[1] != self.weight.shape[1]:
            raise ZweaveError(f"the classifier is for models of width {self.weight.shape[1]}")
        # Not a matrix product, whose rows may depend on how many there are: a prompt's probabilities must not.
        logits = (states[:, None, :].double() * self.weight.double()).sum(dim=-1) + self.bias
        probabilities = torch.softmax(logits, dim=-1).float()
        if self.open_set is None:
            return probabilities
        unknown = self.open_set.unknown(states)[:, None]
        other = torch.arange(len(self.labels), device=states.device) == self.labels.index(OTHER)
        return (1 - unknown) * probabilities + unknown * other

    def to(self, device: torch.device) -> "EarlyClassifier":
        """The same with its tensors on a device."""
        open_set = None if self.open_set is None else self.open_set.to(device)
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device), open_set=open_set)

    def classify(self, engine: Engine, texts: Sequence[Sequence[int]]) -> list[str]:
        """The likeliest label of each prompt, given as its token ids before the assistant's header."""
        (states,) = engine.pooled_states(texts, [self.layer])
        return [self.labels[index] for index in self.probabilities(states.cpu()).argmax(dim=1).tolist()]

    def save(self, path: Path) -> None:
        """Writes a safetensors file with the rest as JSON in its metadata."""
        facts = {"labels": self.labels, "layer": self.layer, "training": dict(self.training)}
        metadata = {
            "format": FORMAT if self.open_set is None else OPEN_FORMAT,
            "classifier": json.dumps(facts),
            "base_digest": self.base_digest or "",
        }
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        if self.open_set is not None:
            tensors |= {name: getattr(self.open_set, name).contiguous() for name in _OPEN_TENSORS}
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> "EarlyClassifier":
        """Reads and checks a classifier's file; executes nothing in it."""
        with open_tensors(path) as handle:
            metadata = handle.metadata() or {}
            is_open = metadata.get("format") == OPEN_FORMAT
            wanted = {"weight", "bias"} | (_OPEN_TENSORS if is_open else set())
            if metadata.get("format") not in (FORMAT, OPEN_FORMAT) or set(handle.keys()) != wanted:
                raise ZweaveError(f"{path}: is not a classifier ({FORMAT} or {OPEN_FORMAT})")
            try:
                parts = {name: handle.get_tensor(name).clone() for name in _OPEN_TENSORS if is_open}
                facts = parse_json(metadata["classifier"])
                labels, layer = facts["labels"], facts["layer"]
                if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
                    raise ZweaveError("its labels must be a list of texts")
                if not is_integer(layer):
                    raise ZweaveError(f"its layer must be a whole number, not {shortened(layer)}")
                return cls(
                    labels=tuple(labels),
                    layer=layer,
                    weight=handle.get_tensor("weight").clone(),
                    bias=handle.get_tensor("bias").clone(),
                    base_digest=metadata.get("base_digest") or None,
                    training=dict(facts["training"]),
                    open_set=OpenSet(**parts) if is_open else None,
                )
            except (KeyError, ValueError, TypeError):
                raise ZweaveError(f"{path}: the classifier's metadata is malformed") from None
            except ZweaveError as error:
                raise ZweaveError(f"{path}: {error}") from None
