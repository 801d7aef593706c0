"""Any GGUF metadata is refused in one line or gives a model that loads."""

import math
import shutil
import struct
import warnings

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from zweave.checkpoint import Checkpoint
from zweave.checkpoint.gguf.convert import convert
from zweave.checkpoint.rope_tables import rope_tables
from zweave.errors import ZweaveError

TOKENS = [*sorted(ByteLevel.alphabet()), "!!"]
WIDTH = 8
INTEGERS, FLOAT, BOOL, STRING, ARRAY = {"I": 4, "i": 5, "Q": 10, "B": 0}, 6, 7, 8, 9
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": WIDTH,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": ["! !"],
}
TENSORS = {
    "token_embd.weight": (len(TOKENS), WIDTH),
    "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.ffn_norm.weight": (WIDTH,),
    **{
        f"blk.0.{name}.weight": (WIDTH, WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    },
}
SENSIBLE = {
    "general.architecture": st.just("llama"),
    "llama.attention.head_count_kv": st.just(1),
    "llama.attention.key_length": st.just(WIDTH),
    "llama.attention.value_length": st.just(WIDTH),
    "llama.attention.sliding_window": st.integers(0, 64),
    "llama.rope.dimension_count": st.just(WIDTH),
    "llama.rope.freq_base": st.sampled_from([1e4, 5e5, 100]),
    "llama.rope.scale_linear": st.sampled_from([0.0, 1.0, 2.0]),
    "llama.rope.scaling.type": st.sampled_from(["none", "linear", "yarn", "longrope"]),
    "llama.rope.scaling.factor": st.sampled_from([0.0, 1.0, 2.0, 4.0]),
    "llama.rope.scaling.original_context_length": st.integers(0, 64),
    "llama.rope.scaling.attn_factor": st.sampled_from([1.0, 1.25]),
    "llama.rope.scaling.yarn_beta_fast": st.sampled_from([32.0, 16.0]),
    "llama.expert_count": st.just(0),
    "split.count": st.integers(0, 1),
    "split.no": st.just(0),
    "split.tensors.count": st.integers(0, 20),
    "general.alignment": st.sampled_from([8, 32, 64]),
}
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**64 - 1),
    st.integers(0, 70),
    st.floats(width=32),
    st.sampled_from([2**32 - 1, 1e-38, 3e38]),
    st.text(max_size=6),
)
JUNK = st.one_of(SCALARS, SCALARS, st.lists(st.text(max_size=3), max_size=3), st.lists(st.integers(0, 9)))


def _string(text):
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _typed(value):
    """A metadata value behind its type."""
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        form = "i" if value < 0 else "I" if value < 2**32 else "Q"
        return struct.pack(f"<I{form}", INTEGERS[form], value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    strings = not value or isinstance(value[0], str)
    kind = STRING if strings else INTEGERS["Q"]
    head = struct.pack("<IIQ", ARRAY, kind, len(value))
    return head + b"".join(_string(item) if strings else struct.pack("<Q", item) for item in value)


def _file(metadata, tensors):
    content = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    content += b"".join(_string(key) + _typed(value) for key, value in metadata.items())
    offset = 0
    for name, shape in tensors.items():
        content += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], 0, offset)
        offset += -(-4 * math.prod(shape) // 64) * 64
    return content + b"\0" * (-len(content) % 64 + offset)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The model in a file of this content; None if it is refused, in one line."""
    folder = tmp_path_factory.mktemp("gguf")
    path, target = folder / "a.gguf", folder / "out"

    def convert_file(content):
        path.write_bytes(content)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                convert(path, target)
        except ZweaveError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 500
            return None
        assert not any("\n" in str(warning.message) for warning in caught)
        return Checkpoint(target)

    return convert_file


@given(
    st.fixed_dictionaries({}, optional=SENSIBLE),
    st.dictionaries(st.sampled_from([*METADATA, *SENSIBLE]), st.one_of(st.none(), JUNK), max_size=1),
)
def test_any_metadata(converted, sensible, junk):
    metadata = {**METADATA, **sensible, **junk}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    checkpoint = converted(_file(metadata, TENSORS))
    if checkpoint is None:
        return
    event("converted")
    assert checkpoint.config.hidden_size == WIDTH
    for table in rope_tables(checkpoint.config, 80):
        assert table.isfinite().all()
    assert torch.equal(checkpoint.tensor("model.norm.weight"), torch.zeros(WIDTH))


@given(
    st.dictionaries(
        st.sampled_from([*TENSORS, "output.weight", "rope_freqs.weight", "rope_factors_long.weight", "a\nb"]),
        st.lists(st.sampled_from([1, 4, WIDTH, len(TOKENS)]), min_size=1, max_size=3),
        max_size=3,
    ),
    st.sampled_from(["none", "longrope"]),
)
def test_any_tensors(converted, changes, kind):
    metadata = {**METADATA, "llama.rope.scaling.type": kind}
    checkpoint = converted(_file(metadata, {**TENSORS, **changes}))
    assert checkpoint is None or checkpoint.config.tie_embeddings == ("output.weight" not in changes)
