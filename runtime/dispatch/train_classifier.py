"""Trains early-layer classifiers: logistic regression (scikit-learn) on labelled training prompts, layer by layer.

Validation chooses the layer: the most right answers, then the widest margin to prompts of no task, then the earliest.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..engine.engine import Engine
from ..errors import ZweaveError
from ..evaluation.baselines import logistic_regression
from ..tasks import Sample, Task, balanced_shots, prompt_ids, prompts
from ..tasks.everyday import everyday_prompts
from .early_classifier import OTHER, EarlyClassifier
from .open_set import OpenSet

_HELD_OUT = 4  # every fourth everyday prompt is for validation
_NEAREST = 0.02  # share of the nearest everyday prompts that the margin leaves out


def train_classifier(
    engine: Engine,
    task: Task,
    data: Path | None,
    layers: Sequence[int],
    shots: int = 500,
    seed: int = 0,
    base_digest: str | None = None,
    other: bool = False,
) -> tuple[EarlyClassifier, dict[int, float]]:
    """Returns the classifier of the best layer, and each layer's share of right answers in validation.

    other: teach it as well what is of none of the labels, by everyday prompts under the label OTHER and by an open set.
    Raises ZweaveError for a task without labels, and as the engine and the task do.
    """
    if not task.labels:
        raise ZweaveError(f"the answers of {task.name} are generated: a classifier needs labels")
    train = task.samples("train", data, seed)
    train = balanced_shots(train, task.labels, seed, shots)
    validation = task.samples("validation", data, seed)
    labels = task.labels
    if other:
        everyday = [Sample(prompts.chat(text), OTHER, {"text": text}) for text in everyday_prompts()]
        train = [*train, *(s for i, s in enumerate(everyday) if i % _HELD_OUT)]
        validation = [*validation, *everyday[::_HELD_OUT]]
        labels = labels if OTHER in labels else (*labels, OTHER)
    layers = sorted(set(layers))
    states = engine.pooled_states([bare_prompt(engine, s) for s in (*train, *validation)], layers).cpu()
    record = {"task": task.name, "shots": len(train), "validation": len(validation), "seed": seed}
    shares: dict[int, float] = {}
    scores: dict[int, tuple[float, float]] = {}
    classifiers: dict[int, EarlyClassifier] = {}
    for layer, of_layer in zip(layers, states, strict=True):
        fitted, held_out = of_layer[: len(train)], of_layer[len(train) :]
        weight, bias = _fit(fitted, train, labels)
        open_set = _fit_open_set(fitted, train, held_out, validation, labels) if other else None
        classifier = EarlyClassifier(labels, layer, weight, bias, base_digest, record, open_set)
        chosen = classifier.probabilities(held_out).argmax(dim=1).tolist()
        shares[layer] = sum(labels[i] == s.answer for i, s in zip(chosen, validation, strict=True)) / len(
            chosen
        )
        scores[layer] = shares[layer], _margin(open_set, held_out, validation)
        classifiers[layer] = classifier
    return classifiers[max(scores, key=scores.__getitem__)], shares


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


def _fit_open_set(
    states: Tensor,
    samples: Sequence[Sample],
    held_out: Tensor,
    validation: Sequence[Sample],
    labels: Sequence[str],
) -> OpenSet:
    """The open set of all labels but OTHER, whose prompts have nothing in common."""
    known = [label for label in labels if label != OTHER]
    rows = [i for i, s in enumerate(samples) if s.answer != OTHER]
    classes = torch.tensor([known.index(samples[i].answer) for i in rows])
    own = [i for i, s in enumerate(validation) if s.answer != OTHER]
    return OpenSet.fit(states[rows], classes, held_out[own])


def _margin(open_set: OpenSet | None, held_out: Tensor, validation: Sequence[Sample]) -> float:
    """How far nearly all validation prompts of OTHER lie outside, as a multiple of the limit."""
    if open_set is None:
        return 0.0
    foreign = [i for i, s in enumerate(validation) if s.answer == OTHER]
    return float(open_set.distances(held_out[foreign]).quantile(_NEAREST))
