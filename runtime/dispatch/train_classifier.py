"""Trains early-layer classifiers: logistic regression (scikit-learn) on labelled training prompts, layer by layer.

Validation chooses the layer, the earliest of equals.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..evaluation.baselines import logistic_regression
from ..tasks import Sample, Task, balanced_shots, prompt_ids, prompts
from .early_classifier import EarlyClassifier


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
    train = balanced_shots(train, task.labels, seed, shots)
    validation = task.samples("validation", data, seed)
    layers = sorted(set(layers))
    states = engine.pooled_states([bare_prompt(engine, s) for s in (*train, *validation)], layers).cpu()
    shares: dict[int, float] = {}
    classifiers: dict[int, EarlyClassifier] = {}
    for layer, of_layer in zip(layers, states, strict=True):
        weight, bias = _fit(of_layer[: len(train)], train, task.labels)
        record = {"task": task.name, "shots": len(train), "validation": len(validation), "seed": seed}
        classifier = EarlyClassifier(task.labels, layer, weight, bias, base_digest, record)
        chosen = classifier.probabilities(of_layer[len(train) :]).argmax(dim=1).tolist()
        hits = [task.labels[i] == s.answer for i, s in zip(chosen, validation, strict=True)]
        shares[layer], classifiers[layer] = sum(hits) / len(hits), classifier
    return classifiers[max(shares, key=shares.__getitem__)], shares


def bare_prompt(engine: Engine, sample: Sample) -> list[int]:
    """The sample as a user would send it, up to the assistant's header: what a first pass reads.

    It is the sample's bare text, without the task's instruction, where the sample has one.
    """
    text = sample.data.get("text")
    tokens = prompt_ids(engine.tokenizer, prompts.chat(text) if isinstance(text, str) else sample.prompt)
    return tokens[: max(1, engine.tokenizer.after_prompt_start(tokens))]


def _fit(states: Tensor, samples: Sequence[Sample], labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """W [labels, hidden] and b [labels], the standardisation of the features folded in."""
    missing = [label for label in labels if all(sample.answer != label for sample in samples)]
    if missing:
        raise ZweaveError(f"no training sample has the label {missing[0]!r}: give more shots")
    model = logistic_regression().fit(states.double().numpy(), [labels.index(s.answer) for s in samples])
    scaler, regression = model.steps[0][1], model.steps[1][1]
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    # For two classes the regression has one row, that of the second: the first gets a row of zeros.
    weight, bias = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    if len(labels) == 2:
        return torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return weight, bias
