"""GGUF files to Hugging Face directories: same weights and tokens as transformers reads, nothing trusted."""

import json
import os
import struct
import time

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from zweave.checkpoint import Checkpoint, resolve_model
from zweave.checkpoint.gguf.convert import convert
from zweave.errors import ZweaveError
from zweave.text import Tokenizer

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
}
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _alphabet():
    from tokenizers.pre_tokenizers import ByteLevel

    return TOKENS + sorted(ByteLevel.alphabet()) + ["Ġa", "12", "he", "Ġhe", "<tool>"]


def _write_tokenizer(writer, pre="smollm", tokens=None):
    tokens = tokens or _alphabet()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 4) + [4])
    writer.add_token_merges(["Ġ a", "1 2", "h e", "Ġ he"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}<|im_end|>")


def _permute(weights, heads):
    """llama.cpp's own reordering of query and key rows."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def _write(path, directory, kind=None, change=None, extra=None):
    """A GGUF file of a tiny model's weights, as llama.cpp's converter writes it."""
    config = Checkpoint(directory).config
    architecture = "llama" if config.architecture == "mistral" else config.architecture
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_tokenizer(writer)
    if extra is not None:
        extra(writer)
    tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        values = tensor.numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = _permute(values, config.num_heads if "q_proj" in name else config.num_kv_heads)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        tensors[name] = values
    if change is not None:
        change(tensors)
    for name, values in tensors.items():
        if kind is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def model(tiny_model):
    """A tiny model with the vocabulary of the files that these tests write."""
    return lambda architecture="llama", **options: tiny_model(
        architecture, vocab_size=len(_alphabet()), **options
    )


def _converted(path, target):
    target.mkdir()
    convert(path, target)
    return target


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_weights_and_config_come_back(model, tmp_path, architecture, tie):
    source = model(architecture, tie_word_embeddings=tie)
    target = _converted(_write(tmp_path / "a.gguf", source), tmp_path / "out")
    expected, got = Checkpoint(source), Checkpoint(target)
    assert got.config == expected.config
    for name in expected.names():
        assert torch.equal(got.tensor(name), expected.tensor(name)), name
    assert got.digest() == expected.digest()


def test_a_window_tells_mistral_from_llama(model, tmp_path):
    source = model("mistral", sliding_window=7)
    path = _write(tmp_path / "a.gguf", source, extra=lambda writer: writer.add_sliding_window(7))
    got = Checkpoint(_converted(path, tmp_path / "out"))
    assert got.config == Checkpoint(source).config
    assert got.digest() == Checkpoint(source).digest()


def test_transformers_loads_the_directory(model, tmp_path):
    source = model()
    target = _converted(_write(tmp_path / "a.gguf", source), tmp_path / "out")
    ids = torch.arange(20)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(path, dtype="float32")(ids).logits for path in (source, target)
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    text = "he a1234 <|im_end|> <tool>"
    assert AutoTokenizer.from_pretrained(target).encode(text) == Tokenizer(target).encode(text)


def test_transformers_reads_the_same_from_the_file(model, tmp_path):
    path = _write(tmp_path / "a.gguf", model(intermediate_size=64), Type.Q8_0)
    target = _converted(path, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32
    ).state_dict()
    ours = Checkpoint(target)
    for name in ours.names():
        assert torch.equal(ours.tensor(name), theirs[name]), name


@pytest.mark.parametrize(
    "kind", [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_1, Type.Q8_0], ids=lambda k: k.name
)
def test_types_are_dequantised(model, tmp_path, kind):
    source = model(intermediate_size=64)
    target = _converted(_write(tmp_path / "a.gguf", source, kind), tmp_path / "out")
    name = "model.layers.1.mlp.down_proj.weight"
    stored = Checkpoint(source).tensor(name).numpy()
    expected = gguf.quants.dequantize(gguf.quants.quantize(stored, kind), kind)
    assert torch.equal(Checkpoint(target).tensor(name), torch.from_numpy(expected))


def test_conversion_is_deterministic(model, tmp_path):
    path = _write(tmp_path / "a.gguf", model())
    first, second = _converted(path, tmp_path / "b"), _converted(path, tmp_path / "c")
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_resolve_converts_once(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    path = _write(tmp_path / "a.gguf", model())
    first = resolve_model(path)
    monkeypatch.setattr("zweave.checkpoint.gguf.convert.convert", None)
    assert resolve_model(str(path)).directory == first.directory
    assert first.digest() == Checkpoint(model()).digest()


def test_special_tokens_and_ends(model, tmp_path):
    path = _write(tmp_path / "a.gguf", model(), extra=lambda writer: writer.add_eot_token_id(0))
    target = _converted(path, tmp_path / "out")
    tokenizer = Tokenizer(target)
    assert tokenizer.eos_ids == (2, 0)
    assert tokenizer.decode(tokenizer.encode("a<|im_end|><tool>")) == "a<tool>"
    assert tokenizer.assistant_header == [2]


def test_llama3_frequencies_are_recognised(model, tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    source = model(rope_parameters=scaling)
    inverse = 1 / 500000.0 ** (np.arange(0, 8, 2) / 8)
    # llama.cpp's converter: what each frequency is divided by.
    factors = []
    for frequency in inverse:
        length = 2 * np.pi / frequency
        smooth = (8192 / length - 1) / 3
        factors.append(1 if length < 2048 else 32 if length > 8192 else 1 / ((1 - smooth) / 32 + smooth))

    def with_factors(tensors):
        tensors["rope_freqs.weight"] = np.array(factors, np.float32)

    target = _converted(_write(tmp_path / "a.gguf", source, change=with_factors), tmp_path / "out")
    assert Checkpoint(target).config == Checkpoint(source).config
    factors[1] = 5.0
    with pytest.raises(ZweaveError, match=r"rope_freqs\.weight is not Llama 3's"):
        _converted(_write(tmp_path / "b.gguf", source, change=with_factors), tmp_path / "out2")


def test_longrope_factors_are_carried_over(model, tmp_path):
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "attention_factor": 1.25,
        "original_max_position_embeddings": 128,
        "short_factor": [1.0, 1.1, 1.3, 1.7],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
    }
    source = model(rope_parameters=scaling)

    def scale(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_attn_factors(1.25)
        writer.add_rope_scaling_orig_ctx_len(128)

    def with_factors(tensors):
        for name in ("short", "long"):
            tensors[f"rope_factors_{name}.weight"] = np.array(scaling[f"{name}_factor"], np.float32)

    path = _write(tmp_path / "a.gguf", source, change=with_factors, extra=scale)
    assert Checkpoint(_converted(path, tmp_path / "out")).config == Checkpoint(source).config


def test_a_stored_head_is_used_and_none_is_the_embedding(model, tmp_path):
    """As llama.cpp does: no key tells."""
    source = model(tie_word_embeddings=True)
    head = np.random.default_rng(0).normal(size=(len(_alphabet()), 32)).astype(np.float32)
    path = _write(tmp_path / "a.gguf", source, change=lambda t: t.update({"output.weight": head}))
    untied = Checkpoint(_converted(path, tmp_path / "out"))
    assert torch.equal(untied.tensor("lm_head.weight"), torch.from_numpy(head))
    tied = Checkpoint(_converted(_write(tmp_path / "b.gguf", source), tmp_path / "out2"))
    assert "lm_head.weight" not in tied.names()


@pytest.mark.parametrize("name", ["A.GGUF", "blob", "model.bin"])
def test_a_file_is_known_by_its_first_bytes(model, tmp_path, monkeypatch, name):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    _write(tmp_path / "a.gguf", model()).rename(tmp_path / name)
    assert resolve_model(tmp_path / name).digest() == Checkpoint(model()).digest()


def _split(path, count, **fields):
    """The file's tensors in `count` files beside it, as llama.cpp's gguf-split writes them."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    names = list(tensors)
    parts = []
    for number in range(count):
        part = path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.gguf")
        writer = gguf.GGUFWriter(part, "llama")
        parts.append(part)
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                writer.add_key_value(
                    field.name,
                    field.contents(),
                    field.types[0],
                    field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None,
                )
        values = {"split.no": number, "split.count": count, "split.tensors.count": len(names)} | fields
        for key, value in values.items():
            writer.add_uint16(key, value)
        for name in names[number::count]:
            writer.add_tensor(name, tensors[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


def test_a_split_model_loads_from_any_part(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    parts = _split(_write(tmp_path / "a.gguf", model()), 3)
    directories = {resolve_model(part).directory for part in parts}
    assert len(directories) == 1
    whole = _converted(tmp_path / "a.gguf", tmp_path / "whole")
    for name in os.listdir(whole):
        if name != "model.safetensors":
            assert (whole / name).read_bytes() == (directories.copy().pop() / name).read_bytes(), name
    assert resolve_model(parts[1]).digest() == Checkpoint(model()).digest()
    parts[1].unlink()
    with pytest.raises(ZweaveError, match=r"a-00002-of-00003\.gguf is missing: .* split into 3 files"):
        resolve_model(parts[2])


def test_parts_that_are_not_of_one_model(model, tmp_path):
    path = _write(tmp_path / "a.gguf", model())
    parts = _split(path, 2)
    first, second = (part.read_bytes() for part in parts)
    parts[0].write_bytes(second)
    with pytest.raises(ZweaveError, match="name says part 1 of 2, its content does not"):
        convert(parts[1], tmp_path)
    parts[0].write_bytes(path.read_bytes())
    with pytest.raises(ZweaveError, match="name says part 1 of 2, its content does not"):
        convert(parts[0], tmp_path)
    parts[0].write_bytes(first)
    _split(path, 2, **{"split.tensors.count": 4})
    with pytest.raises(ZweaveError, match="the parts hold 21 tensors, the first says 4"):
        convert(parts[0], tmp_path)
    _split(path, 2, **{"split.no": 0})
    with pytest.raises(ZweaveError, match="name says part 2 of 2"):
        convert(parts[0], tmp_path)
    outside = parts[1].with_name("a-00003-of-00002.gguf")
    parts[1].rename(outside)
    with pytest.raises(ZweaveError, match="a model of 2 parts has no such one"):
        convert(outside, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("blk.1.ffn_up.weight"),
            r"lacks the tensor for model\.layers\.1\.mlp\.up_proj\.weight",
        ),
        (
            lambda t: t.update({"blk.0.extra.weight": np.ones(4, np.float32)}),
            r"'blk\.0\.extra\.weight' is not known",
        ),
        (lambda t: t.update({"../../evil": np.ones(4, np.float32)}), r"'\.\./\.\./evil' is not known"),
        (lambda t: t.update({"blk.7.attn_q.weight": np.ones(4, np.float32)}), "has no tensor"),
        (lambda t: t.update({"blk.0.attn_q.bias": np.ones(32, np.float32)}), "has no tensor"),
        (lambda t: t.update({"blk.1.ffn_up.weight": np.ones((48, 31), np.float32)}), r"shape \(48, 31\)"),
        (lambda t: t.update({"output_norm.weight": np.full(32, np.nan, np.float32)}), "not finite"),
        (lambda t: t.update({"output_norm.weight": np.ones(32, np.int32)}), "I32 of output_norm.weight"),
    ],
    ids=["missing", "unknown", "traversal", "layer", "bias", "shape", "nan", "type"],
)
def test_tensors_that_are_refused(model, tmp_path, change, message):
    path = _write(tmp_path / "a.gguf", model(), change=change)
    with pytest.raises(ZweaveError, match=message):
        _converted(path, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.gguf", "out"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda writer: writer.add_uint16("split.count", 3), "is one of 3 parts of a model"),
        (lambda writer: writer.add_expert_count(8), "mixture-of-experts"),
        (lambda writer: writer.add_uint32("llama.rope.dimension_count", 4), "4 differs from the head size"),
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), None),
    ],
    ids=["split", "moe", "rotary", "unscaled"],
)
def test_metadata_that_are_refused(model, tmp_path, extra, message):
    path = _write(tmp_path / "a.gguf", model(), extra=extra)
    if message is None:
        assert Checkpoint(_converted(path, tmp_path / "out")).config.rope_scaling is None
    else:
        with pytest.raises(ZweaveError, match=message):
            _converted(path, tmp_path / "out")


def test_more_tokens_than_embeddings(tiny_model, tmp_path):
    path = _write(tmp_path / "a.gguf", tiny_model("llama", vocab_size=100))
    with pytest.raises(ZweaveError, match="264 tokens, 100 embeddings"):
        _converted(path, tmp_path / "out")


def test_other_architectures_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gemma3")
    _write_tokenizer(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ZweaveError, match="'gemma3' is not supported: supported are llama, qwen2, qwen3"):
        convert(tmp_path / "a.gguf", tmp_path)


def _string(text):
    return struct.pack("<Q", len(text)) + text


HEADER = b"GGUF" + struct.pack("<I", 3)
PAIR = struct.pack("<QQ", 0, 1) + _string(b"k")


def _tensors(*entries):
    """A file without metadata, with (name, shape, type, offset) tensors and 64 bytes of data."""
    content = HEADER + struct.pack("<QQ", len(entries), 0)
    for name, shape, kind, offset in entries:
        content += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return content + b"\0" * (-len(content) % 32 + 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"GGML" + b"\0" * 100, "does not begin with GGUF"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 16, "version 50331648 is not supported"),
        (HEADER, "ends early"),
        (HEADER + struct.pack("<QQ", 1 << 63, 0), "ends early"),
        (HEADER + struct.pack("<QQ", 0, 1 << 60), "ends early"),
        (HEADER + PAIR + struct.pack("<IQ", 8, 1 << 62), "ends early"),
        (HEADER + PAIR + struct.pack("<IIQ", 9, 7, 1 << 62) + b"\0" * 64, "ends early"),
        (HEADER + PAIR + struct.pack("<IIQ", 9, 8, 1 << 60) + b"\0" * 64, "ends early"),
        (HEADER + PAIR + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 64, "an array has the type 9"),
        (HEADER + PAIR + struct.pack("<I", 99) + b"\0" * 64, "unknown type 99"),
        (HEADER + struct.pack("<QQ", 0, 1) + _string(b"\xff\xfe") + b"\0" * 64, "no UTF-8"),
        (
            HEADER + struct.pack("<QQ", 0, 2) + (_string(b"k") + struct.pack("<IQ", 10, 5)) * 2,
            "'k' appears twice",
        ),
        (
            HEADER
            + struct.pack("<QQ", 0, 1)
            + _string(b"general.alignment")
            + struct.pack("<II", 4, 0)
            + b"\0" * 32,
            "alignment 0",
        ),
        (_tensors((b"a", [4], 0, 0), (b"a", [4], 0, 32)), "'a' appears twice"),
        (_tensors((b"a", [16], 0, 0), (b"b", [4], 0, 32)), "'b' is misplaced"),
        (_tensors((b"a", [4], 0, 5)), "'a' is misplaced"),
        (_tensors((b"a", [64], 0, 0)), "ends before the tensor 'a'"),
        (_tensors((b"a", [1 << 40, 1 << 40], 0, 0)), "has the shape"),
        (_tensors((b"a", [0], 0, 0)), "has the shape"),
        (_tensors((b"a", [33], 8, 0)), r"Q8_0 has the shape \(33,\)"),
        (_tensors((b"a", [4], 250, 0)), "unknown type 250"),
        (_tensors((b"a", [1] * 5, 0, 0)), "5 dimensions"),
        (_tensors((b"a" * 65, [4], 0, 0)), "name has 65 bytes"),
    ],
    ids=range(24),
)
def test_malformed_files(tmp_path, content, message):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ZweaveError, match=message) as caught:
        convert(path, tmp_path)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5
    assert os.listdir(tmp_path) == ["a.gguf"]


@pytest.fixture(scope="module")
def valid(model, tmp_path_factory):
    return _write(tmp_path_factory.mktemp("valid") / "a.gguf", model()).read_bytes()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_convert_or_are_refused(valid, tmp_path_factory, data):
    content = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        # The header is what matters; it takes up the first part of the file.
        at = data.draw(st.integers(0, 12000))
        piece = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8]))
        content[at : at + len(piece)] = piece
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    directory = tmp_path_factory.mktemp("mutated")
    (directory / "a.gguf").write_bytes(content)
    try:
        converted = _converted(directory / "a.gguf", directory / "out")
    except ZweaveError as error:
        assert "\n" not in str(error)
    else:
        Checkpoint(converted)
        json.loads((converted / "tokenizer.json").read_text())
