"""The distance that tells known prompts from unknown ones."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from zweave.dispatch.early_classifier import OTHER, EarlyClassifier
from zweave.dispatch.open_set import DIRECTIONS, OpenSet
from zweave.errors import ZweaveError
from zweave.tasks.everyday import everyday_prompts

HIDDEN = 24


def clouds(seed: int, per_class: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Three Gaussian classes of one covariance, with features of very different scale."""
    generator = torch.Generator().manual_seed(seed)
    centers = 4 * torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(99))
    mix = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(98)) / HIDDEN**0.5
    classes = torch.arange(3).repeat_interleave(per_class)
    noise = torch.randn(3 * per_class, HIDDEN, generator=generator) @ mix
    return (centers[classes] + noise) * torch.logspace(-2, 2, HIDDEN) + 7, classes


@pytest.fixture(scope="module")
def fitted() -> OpenSet:
    return OpenSet.fit(*clouds(0), clouds(1)[0])


def test_the_distance_is_mahalanobis_with_one_variance_beyond_the_leading_directions(fitted: OpenSet) -> None:
    states, classes = clouds(0)
    x = states.double().numpy()
    centers = np.stack([x[classes == c].mean(0) for c in range(3)])
    scale = x.std(0)
    inside = (x - centers[classes]) / scale
    values, vectors = np.linalg.eigh(inside.T @ inside / len(x))
    values[:-DIRECTIONS] = values[:-DIRECTIONS].mean()
    inverse = vectors @ np.diag(1 / values) @ vectors.T

    def squared(queries: torch.Tensor) -> np.ndarray:
        d = (queries.double().numpy()[:, None] - centers) / scale
        return np.einsum("nci,ij,ncj->nc", d, inverse, d).min(1)

    limit = squared(clouds(1)[0]).max()
    queries = torch.cat([clouds(2)[0], clouds(3)[0] + 30 * torch.logspace(-2, 2, HIDDEN)])
    np.testing.assert_allclose(fitted.distances(queries).numpy(), squared(queries) / limit, rtol=1e-4)


def test_the_classes_own_are_known_and_what_is_far_is_not(fitted: OpenSet) -> None:
    own, far = clouds(2)[0], clouds(2)[0] + 40 * torch.logspace(-2, 2, HIDDEN)
    assert (fitted.unknown(own) < 0.5).float().mean() > 0.99
    assert (fitted.unknown(far) > 0.99).all()
    limit = dataclasses.replace(fitted, limit=fitted.distances(own[:1]) * fitted.limit)
    torch.testing.assert_close(limit.unknown(own[:1]), torch.tensor([0.5]))


def test_a_states_distance_does_not_depend_on_the_others(fitted: OpenSet) -> None:
    states = clouds(2)[0]
    together = fitted.distances(states)
    assert all(torch.equal(fitted.distances(states[i : i + 1])[0], together[i]) for i in range(0, 600, 97))


def test_what_is_unknown_is_other(fitted: OpenSet, tmp_path: Path) -> None:
    labels = ("a", "b", OTHER, "c")
    weight = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(5)) / torch.logspace(
        -2, 2, HIDDEN
    )
    softmax = EarlyClassifier(labels, 2, weight, torch.zeros(4))
    classifier = dataclasses.replace(softmax, open_set=fitted)
    states = torch.cat([clouds(2)[0][:20], clouds(2)[0][:20] + 40 * torch.logspace(-2, 2, HIDDEN)])
    found, before, u = classifier.probabilities(states), softmax.probabilities(states), fitted.unknown(states)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(40))
    torch.testing.assert_close(found[:, 0], (1 - u) * before[:, 0])
    torch.testing.assert_close(found[:, 2], u + (1 - u) * before[:, 2])
    assert (found[20:].argmax(dim=1) == 2).all()
    classifier.save(tmp_path / "c.safetensors")
    loaded = EarlyClassifier.load(tmp_path / "c.safetensors")
    assert torch.equal(loaded.probabilities(states), found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limit": torch.zeros(1)}, "must be above 0"),
        ({"scale": torch.full((HIDDEN,), torch.nan)}, "scale must be finite"),
        ({"variances": torch.ones(3)}, "variances must be float32"),
    ],
)
def test_what_cannot_be_is_refused(fitted: OpenSet, change: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(ZweaveError, match=words):
        dataclasses.replace(fitted, **change)


def test_an_open_set_needs_a_label_for_what_is_outside(fitted: OpenSet) -> None:
    weight = torch.zeros(2, HIDDEN)
    with pytest.raises(ZweaveError, match="needs the label 'other'"):
        EarlyClassifier(("a", "b"), 1, weight, torch.zeros(2), open_set=fitted)
    with pytest.raises(ZweaveError, match="of another width"):
        EarlyClassifier(("a", OTHER), 1, weight[:, :4], torch.zeros(2), open_set=fitted)


def test_everyday_prompts_are_texts_of_their_own() -> None:
    texts = everyday_prompts()
    assert len(set(texts)) == len(texts) > 250
    assert all(text.strip() == text and text for text in texts)
