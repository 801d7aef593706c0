"""Tells what a prompt is about from the mean hidden state of an early layer: a few layers and one small product.

Logistic regression (scikit-learn) on labelled training prompts, for each layer asked for. Validation chooses the
earliest layer that is within one standard error of the best: what lies between is chance, and a lower layer is cheaper.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zweave import prompts
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.evaluation.baselines import logistic_regression
from zweave.evaluation.evaluate import standard_error
from zweave.tasks import Sample, Task, balanced, prompt_ids
from zweave.tensor_file import open_tensors, save_tensors

FORMAT = "zweave-early-classifier-1"


@dataclass(frozen=True, slots=True, eq=False)
class EarlyClassifier:
    """p = softmax(W h + b), with h the mean over the prompt's tokens of the state that enters a layer.

    weight: W [labels, hidden] float32. bias: b [labels] float32. layer: from 1 on.
    base_digest: of the weights that it was trained on, if known. training: a JSON object on how it was made.
    """

    labels: tuple[str, ...]
    layer: int
    weight: Tensor
    bias: Tensor
    base_digest: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or self.layer < 1:
            raise ZweaveError("a classifier needs two labels or more, and a layer from 1 on")
        shapes = (self.weight.dim(), self.weight.shape[0], tuple(self.bias.shape))
        if shapes != (2, len(self.labels), (len(self.labels),)):
            raise ZweaveError(f"the classifier's weights do not fit its {len(self.labels)} labels")
        for tensor in (self.weight, self.bias):
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise ZweaveError("the classifier's weights must be finite float32")

    def probabilities(self, states: Tensor) -> Tensor:
        """states: [prompts, hidden] float32. Returns [prompts, labels]."""
        return torch.softmax(states @ self.weight.T + self.bias, dim=-1)

    def classify(self, engine: Engine, texts: Sequence[Sequence[int]]) -> list[str]:
        """The likeliest label of each prompt, given as token ids; ZweaveError if the model has another width."""
        (states,) = engine.pooled_states(texts, [self.layer])
        if states.shape[1] != self.weight.shape[1]:
            raise ZweaveError(f"the classifier is for models of width {self.weight.shape[1]}")
        return [self.labels[index] for index in self.probabilities(states.cpu()).argmax(dim=1).tolist()]

    def save(self, path: Path) -> None:
        """Writes a safetensors file with the rest as JSON in its metadata."""
        facts = {"labels": self.labels, "layer": self.layer, "training": dict(self.training)}
        metadata = {"format": FORMAT, "classifier": json.dumps(facts), "base_digest": self.base_digest or ""}
        save_tensors(path, {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, metadata)

    @classmethod
    def load(cls, path: Path) -> "EarlyClassifier":
        """Reads and checks a classifier's file; executes nothing in it."""
        with open_tensors(path) as handle:
            metadata = handle.metadata() or {}
            if metadata.get("format") != FORMAT or set(handle.keys()) != {"weight", "bias"}:
                raise ZweaveError(f"{path}: is not a classifier ({FORMAT})")
            try:
                facts = json.loads(metadata["classifier"])
                return cls(
                    labels=tuple(str(label) for label in facts["labels"]),
                    layer=int(facts["layer"]),
                    weight=handle.get_tensor("weight").clone(),
                    bias=handle.get_tensor("bias").clone(),
                    base_digest=metadata.get("base_digest") or None,
                    training=dict(facts["training"]),
                )
            except (KeyError, ValueError, TypeError, IndexError):
                raise ZweaveError(f"{path}: the classifier's metadata is malformed") from None
            except ZweaveError as error:
                raise ZweaveError(f"{path}: {error}") from None


def train_classifier(
    engine: Engine,
    task: Task,
    data: Path | None,
    layers: Sequence[int],
    shots: int = 500,
    seed: int = 0,
    base_digest: str | None = None,
) -> tuple[EarlyClassifier, dict[int, float]]:
    """Returns the classifier of the best layer, and each layer's share of right answers in validation.

    Raises ZweaveError for a task without labels, and as the engine and the task do.
    """
    if not task.labels:
        raise ZweaveError(f"the answers of {task.name} are generated: a classifier needs labels")
    train = task.samples("train", data, seed)
    train = list(islice(balanced(train, task.labels, seed), min(shots, len(train))))
    validation = task.samples("validation", data, seed)
    layers = sorted(set(layers))
    states = engine.pooled_states([bare_prompt(engine, s) for s in (*train, *validation)], layers).cpu()
    shares: dict[int, float] = {}
    classifiers: dict[int, EarlyClassifier] = {}
    for layer, of_layer in zip(layers, states, strict=True):
        weight, bias = _fit(of_layer[: len(train)], train, task.labels)
        record = {"task": task.name, "shots": len(train), "validation": len(validation), "seed": seed}
        found = EarlyClassifier(task.labels, layer, weight, bias, base_digest, record)
        chosen = found.probabilities(of_layer[len(train) :]).argmax(dim=1).tolist()
        hits = [task.labels[i] == s.answer for i, s in zip(chosen, validation, strict=True)]
        shares[layer], classifiers[layer] = sum(hits) / len(hits), found
    return classifiers[_earliest(shares, len(validation))], shares


def _earliest(shares: Mapping[int, float], n: int) -> int:
    """The first layer whose share of n samples is within one standard error of the best."""
    best = max(shares.values())
    return next(layer for layer in sorted(shares) if shares[layer] >= best - standard_error([best], n))


def bare_prompt(engine: Engine, sample: Sample) -> list[int]:
    """The sample as a user would send it: its bare text, if it has one, without the task's instruction."""
    text = sample.data.get("text")
    return prompt_ids(engine.tokenizer, prompts.chat(text) if isinstance(text, str) else sample.prompt)


def _fit(states: Tensor, samples: Sequence[Sample], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """W [labels, hidden] and b [labels] with the standardisation of the features folded in."""
    missing = [label for label in labels if all(sample.answer != label for sample in samples)]
    if missing:
        raise ZweaveError(f"no training sample has the label {missing[0]!r}: give more shots")
    model = logistic_regression().fit(states.double().numpy(), [labels.index(s.answer) for s in samples])
    scaler, regression = model.steps[0][1], model.steps[1][1]
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    # Of two classes the regression keeps one row: that of the second, against none for the first.
    weight, bias = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    if len(labels) == 2:
        return torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return weight, bias
