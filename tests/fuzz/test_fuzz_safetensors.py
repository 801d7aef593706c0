"""Any safetensors file is refused in one line or gives the values that lie in it."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zweave.checkpoint import Checkpoint, ModelConfig
from zweave.errors import ZweaveError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 4,
    "tie_word_embeddings": True,
}
INDEX = "model.safetensors.index.json"
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 80),
    st.sampled_from([2**63, 2**64 - 1, 10**30, 1.5]),
    st.text(max_size=4),
    st.lists(st.integers(-1, 2**40), max_size=3),
    st.builds(dict),
)
FIELDS = {
    "dtype": st.sampled_from(["F32", "BF16", "F16", "F64", "I8", "BOOL", "F8_E4M3", "F4"]),
    "shape": st.lists(st.sampled_from([0, 1, 2, 4, 16, 2**32]), max_size=3),
    "data_offsets": st.lists(st.sampled_from([0, 16, 64, 80, 2**40]), min_size=2, max_size=2),
}
NAMES = ["lm_head.weight", "embed_tokens.weight", "a\nb", "", "model.layers.1.mlp.up_proj.weight"]


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """The header of a tiny model whose tensors lie one behind the other."""
    directory = tmp_path_factory.mktemp("config")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    entries, offset = {}, 0
    for name, shape in ModelConfig.from_directory(directory).tensor_shapes().items():
        size = 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    return entries


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A checkpoint of these files; None if it is refused, in one line."""
    directory = tmp_path_factory.mktemp("model")

    def read(**files):
        for path in directory.iterdir():
            path.unlink()
        (directory / "config.json").write_text(json.dumps(CONFIG))
        for name, content in files.items():
            (directory / name).write_bytes(content)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                checkpoint = Checkpoint(directory)
        except ZweaveError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 600
            return None
        assert not any("\n" in str(warning.message) for warning in caught)
        return checkpoint

    return read


def _file(header, rest=b""):
    text = json.dumps(header).encode()
    data = np.arange(300, dtype="<f4")
    size = max([0, *(entry["data_offsets"][1] for entry in header.values() if _is_placed(entry))])
    return len(text).to_bytes(8, "little") + text + data.tobytes()[: min(size, 1200)] + rest


def _is_placed(entry):
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(n, int) for n in offsets)


@given(st.data())
def test_any_header(read, header, data):
    changed = {name: dict(entry) for name, entry in header.items()}
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(list(changed) + NAMES))
        entry = changed.setdefault(name, dict(header["model.norm.weight"]))
        what = data.draw(st.sampled_from([*FIELDS, "rename", "drop", "all"]))
        if what == "drop":
            del changed[name]
        elif what == "rename":
            changed[data.draw(st.sampled_from(NAMES))] = changed.pop(name)
        elif what == "all" or not isinstance(entry, dict):
            changed[name] = data.draw(JUNK)
        else:
            entry[what] = data.draw(st.one_of(FIELDS[what], JUNK))
    content = _file(changed)
    checkpoint = read(**{"model.safetensors": content})
    if checkpoint is None:
        return
    start = 8 + int.from_bytes(content[:8], "little")
    for name in checkpoint.names():
        # The names under which transformers, too, finds it.
        names = (name, name.removeprefix("model."), "lm_head.weight")
        entry = next(changed[name] for name in names if name in changed)
        first, last = entry["data_offsets"]
        stored = checkpoint.tensor(name).contiguous().view(-1).numpy().tobytes()
        assert stored == content[start + first : start + last], name


@given(st.binary(max_size=12), st.integers(0, 400), st.booleans())
def test_any_bytes(read, header, piece, at, cut):
    content = _file(header)
    read(**{"model.safetensors": content[:at] + piece + (b"" if cut else content[at + len(piece) :])})


@given(
    st.dictionaries(
        st.sampled_from(["model.norm.weight", "a\nb", "weight"]),
        st.one_of(st.sampled_from(["a.safetensors", "b.safetensors", "../c", "\n.safetensors"]), JUNK),
        max_size=3,
    ),
    st.one_of(st.none(), JUNK),
)
def test_any_index(read, header, changes, whole):
    weight_map = {**dict.fromkeys(header, "a.safetensors"), **changes} if whole is None else whole
    content = json.dumps({"weight_map": weight_map}).encode()
    checkpoint = read(**{INDEX: content, "a.safetensors": _file(header)})
    assert checkpoint is None or set(header) <= set(weight_map)
