"""GGUF files that are damaged, odd or not supported: one line that says so, and nothing is left behind."""

import json
import os
import struct
import time

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zweave.checkpoint import Checkpoint
from zweave.checkpoint.gguf.convert import convert
from zweave.errors import ZweaveError


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
def test_tensors_that_are_refused(gguf_model, write_gguf, converted, tmp_path, change, message):
    path = write_gguf(tmp_path / "a.gguf", gguf_model(), change=change)
    with pytest.raises(ZweaveError, match=message):
        converted(path, tmp_path / "out")
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
def test_metadata_that_are_refused(gguf_model, write_gguf, converted, tmp_path, extra, message):
    path = write_gguf(tmp_path / "a.gguf", gguf_model(), extra=extra)
    if message is None:
        assert Checkpoint(converted(path, tmp_path / "out")).config.rope_scaling is None
    else:
        with pytest.raises(ZweaveError, match=message):
            converted(path, tmp_path / "out")


def test_more_tokens_than_embeddings(tiny_model, write_gguf, converted, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", tiny_model("llama", vocab_size=100))
    with pytest.raises(ZweaveError, match="264 tokens, 100 embeddings"):
        converted(path, tmp_path / "out")


def test_other_architectures_are_refused(gguf_model, write_gguf, tmp_path):
    def rename(writer):
        writer.add_string("general.architecture", "gemma3")

    path = write_gguf(tmp_path / "a.gguf", gguf_model(), extra=rename)
    with pytest.raises(ZweaveError, match="'gemma3' is not supported: supported are llama, qwen2, qwen3"):
        convert(path, tmp_path)


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
def valid(gguf_model, write_gguf, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("valid") / "a.gguf", gguf_model()).read_bytes()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_convert_or_are_refused(valid, converted, tmp_path_factory, data):
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
        target = converted(directory / "a.gguf", directory / "out")
    except ZweaveError as error:
        assert "\n" not in str(error)
    else:
        Checkpoint(target)
        json.loads((target / "tokenizer.json").read_text())
