"""What rounded factors change of a model's answers: the mean KL divergence of its next token."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Matrices: TypeAlias = Callable[[str], Tensor]


def divergence(exact: Tensor, found: Tensor) -> float:
    """The sum over tokens of KL(exact || found), in nats, of log-probabilities [tokens, vocabulary]."""
    return float((exact.exp() * (exact - found)).sum(dtype=torch.float64))


@torch.inference_mode()
def mean_divergence(
    model: Any, chunks: Sequence[Sequence[int]], modules: Iterable[str], exact: Matrices, rounded: Matrices
) -> float:
    """Mean over all tokens of KL(exact || rounded), in nats.

    exact, rounded: a module's matrix [M, N] by its name; the model is left with the rounded ones.
    """
    names = list(modules)
    _set(model, names, exact)
    expected = [_log_probabilities(model, chunk) for chunk in chunks]
    _set(model, names, rounded)
    total = 0.0
    for chunk, wanted in zip(chunks, expected, strict=True):
        total += divergence(wanted, _log_probabilities(model, chunk))
    return total / sum(map(len, chunks))


def _set(model: Any, names: Iterable[str], matrices: Matrices) -> None:
    for name in names:
        model.get_submodule(name).weight.copy_(matrices(name))


def _log_probabilities(model: Any, chunk: Sequence[int]) -> Tensor:
    return model(torch.tensor([chunk]), use_cache=False).logits[0].float().log_softmax(-1)
