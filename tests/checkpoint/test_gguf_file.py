"""GGUF files to Hugging Face directories: same weights and tokens as transformers reads."""

import os

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM, AutoTokenizer

from zweave.checkpoint import Checkpoint, resolve_model
from zweave.errors import ZweaveError
from zweave.text import Tokenizer


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_weights_and_config_come_back(gguf_model, write_gguf, converted, tmp_path, architecture, tie):
    source = gguf_model(architecture, tie_word_embeddings=tie)
    target = converted(write_gguf(tmp_path / "a.gguf", source), tmp_path / "out")
    expected, got = Checkpoint(source), Checkpoint(target)
    assert got.config == expected.config
    for name in expected.names():
        assert torch.equal(got.tensor(name), expected.tensor(name)), name
    assert got.digest() == expected.digest()


def test_a_window_tells_mistral_from_llama(gguf_model, write_gguf, converted, tmp_path):
    source = gguf_model("mistral", sliding_window=7)
    path = write_gguf(tmp_path / "a.gguf", source, extra=lambda writer: writer.add_sliding_window(7))
    got = Checkpoint(converted(path, tmp_path / "out"))
    assert got.config == Checkpoint(source).config
    assert got.digest() == Checkpoint(source).digest()


def test_transformers_loads_the_directory(gguf_model, write_gguf, converted, tmp_path):
    source = gguf_model()
    target = converted(write_gguf(tmp_path / "a.gguf", source), tmp_path / "out")
    ids = torch.arange(20)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(path, dtype="float32")(ids).logits for path in (source, target)
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    text = "he a1234 <|im_end|> <tool>"
    assert AutoTokenizer.from_pretrained(target).encode(text) == Tokenizer(target).encode(text)


def test_transformers_reads_the_same_from_the_file(gguf_model, write_gguf, converted, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", gguf_model(intermediate_size=64), Type.Q8_0)
    target = converted(path, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32
    ).state_dict()
    ours = Checkpoint(target)
    for name in ours.names():
        assert torch.equal(ours.tensor(name), theirs[name]), name


@pytest.mark.parametrize(
    "kind", [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_1, Type.Q8_0], ids=lambda k: k.name
)
def test_types_are_dequantised(gguf_model, write_gguf, converted, tmp_path, kind):
    source = gguf_model(intermediate_size=64)
    target = converted(write_gguf(tmp_path / "a.gguf", source, kind), tmp_path / "out")
    name = "model.layers.1.mlp.down_proj.weight"
    stored = Checkpoint(source).tensor(name).numpy()
    expected = gguf.quants.dequantize(gguf.quants.quantize(stored, kind), kind)
    assert torch.equal(Checkpoint(target).tensor(name), torch.from_numpy(expected))


def test_conversion_is_deterministic(gguf_model, write_gguf, converted, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", gguf_model())
    first, second = converted(path, tmp_path / "b"), converted(path, tmp_path / "c")
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_resolve_converts_once(gguf_model, write_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "a.gguf", gguf_model())
    first = resolve_model(path)
    monkeypatch.setattr("zweave.checkpoint.gguf.convert.convert", None)
    assert resolve_model(str(path)).directory == first.directory
    assert first.digest() == Checkpoint(gguf_model()).digest()


def test_special_tokens_and_ends(gguf_model, write_gguf, converted, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", gguf_model(), extra=lambda writer: writer.add_eot_token_id(0))
    target = converted(path, tmp_path / "out")
    tokenizer = Tokenizer(target)
    assert tokenizer.eos_ids == (2, 0)
    assert tokenizer.decode(tokenizer.encode("a<|im_end|><tool>")) == "a<tool>"
    assert tokenizer.assistant_header == [2]


def test_llama3_frequencies_are_recognised(gguf_model, write_gguf, converted, tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    source = gguf_model(rope_parameters=scaling)
    inverse = 1 / 500000.0 ** (np.arange(0, 8, 2) / 8)
    # llama.cpp's converter: what each frequency is divided by.
    factors = []
    for frequency in inverse:
        length = 2 * np.pi / frequency
        smooth = (8192 / length - 1) / 3
        factors.append(1 if length < 2048 else 32 if length > 8192 else 1 / ((1 - smooth) / 32 + smooth))

    def with_factors(tensors):
        tensors["rope_freqs.weight"] = np.array(factors, np.float32)

    target = converted(write_gguf(tmp_path / "a.gguf", source, change=with_factors), tmp_path / "out")
    assert Checkpoint(target).config == Checkpoint(source).config
    factors[1] = 5.0
    with pytest.raises(ZweaveError, match=r"rope_freqs\.weight is not Llama 3's"):
        converted(write_gguf(tmp_path / "b.gguf", source, change=with_factors), tmp_path / "out2")


def test_longrope_factors_are_carried_over(gguf_model, write_gguf, converted, tmp_path):
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "attention_factor": 1.25,
        "original_max_position_embeddings": 128,
        "short_factor": [1.0, 1.1, 1.3, 1.7],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
    }
    source = gguf_model(rope_parameters=scaling)

    def scale(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_attn_factors(1.25)
        writer.add_rope_scaling_orig_ctx_len(128)

    def with_factors(tensors):
        for name in ("short", "long"):
            tensors[f"rope_factors_{name}.weight"] = np.array(scaling[f"{name}_factor"], np.float32)

    path = write_gguf(tmp_path / "a.gguf", source, change=with_factors, extra=scale)
    assert Checkpoint(converted(path, tmp_path / "out")).config == Checkpoint(source).config


def test_a_stored_head_is_used_and_none_is_the_embedding(gguf_model, write_gguf, converted, tmp_path):
    """As llama.cpp does: no key tells."""
    source = gguf_model(tie_word_embeddings=True)
    head = np.random.default_rng(0).normal(size=(Checkpoint(source).config.vocab_size, 32)).astype(np.float32)
    path = write_gguf(tmp_path / "a.gguf", source, change=lambda t: t.update({"output.weight": head}))
    untied = Checkpoint(converted(path, tmp_path / "out"))
    assert torch.equal(untied.tensor("lm_head.weight"), torch.from_numpy(head))
    tied = Checkpoint(converted(write_gguf(tmp_path / "b.gguf", source), tmp_path / "out2"))
    assert "lm_head.weight" not in tied.names()


@pytest.mark.parametrize("name", ["A.GGUF", "blob", "model.bin"])
def test_a_file_is_known_by_its_first_bytes(gguf_model, write_gguf, tmp_path, monkeypatch, name):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "a.gguf", gguf_model()).rename(tmp_path / name)
    assert resolve_model(tmp_path / name).digest() == Checkpoint(gguf_model()).digest()
