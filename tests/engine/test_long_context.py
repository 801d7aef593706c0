"""How many tokens a sequence may have under scaled rotary positions, and that their logits are transformers'."""

import pytest
import torch

from zweave.engine import Engine, EngineConfig
from zweave.errors import ZweaveError
from zweave.request import Request

SHORT, LONG = [1.0, 1.25, 1.5, 2.0], [1.0, 2.0, 4.0, 8.0]
SCALINGS = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
}
PROMPT = [(7 * token) % 90 for token in range(48)]


@pytest.fixture
def scaled(tiny_model):
    """A model made for 32 positions (its rotary positions reach 64) and an engine on it."""

    def make(name, **options):
        length = 64 if name == "longrope" else 32
        rope = {"rope_theta": 10000.0, **SCALINGS[name]}
        directory = tiny_model("llama", max_position_embeddings=length, rope_parameters=rope)
        return directory, Engine(directory, dtype="float32", **{"kv_tokens": 256, **options})

    return make


@pytest.mark.parametrize("name", SCALINGS)
def test_logits_beyond_the_original_length(scaled, merged_logits, prompt_logits, name):
    directory, engine = scaled(name, max_model_len=48)
    (logits,) = prompt_logits(engine, [(PROMPT[:-1], None)])
    # transformers' frequencies follow from the longest sequence so far, the engine's from its longest.
    expected = merged_logits(directory, {}, None, PROMPT)[:-1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_longrope_serves_the_original_length_with_its_short_factors(scaled, merged_logits, prompt_logits):
    directory, engine = scaled("longrope")
    (logits,) = prompt_logits(engine, [(PROMPT[:20], None)])
    torch.testing.assert_close(logits, merged_logits(directory, {}, None, PROMPT[:20]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ZweaveError, match="takes at most 31"):
        engine.add(Request(PROMPT))


def test_the_default_length_is_what_scaling_reaches(scaled):
    _, engine = scaled("yarn")
    with pytest.raises(ZweaveError, match="takes at most 63"):
        engine.add(Request([1] * 64))


def test_max_model_len_wins(scaled):
    _, engine = scaled("yarn", max_model_len=40)
    with pytest.raises(ZweaveError, match="takes at most 39"):
        engine.add(Request(PROMPT))
    with pytest.warns(UserWarning, match="max_model_len 100: the model is made for 64 tokens"):
        _, engine = scaled("yarn", max_model_len=100)
    (result,) = engine.generate([Request([1] * 98, max_tokens=8)])
    assert len(result.token_ids) <= 2
    with pytest.raises(ZweaveError, match="max_model_len must be an integer of at least 2"):
        EngineConfig(max_model_len=1)
