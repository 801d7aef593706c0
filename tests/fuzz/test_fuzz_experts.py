"""Any expert or classifier file is refused in one line, or what it holds is what comes back when it is saved anew."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from zweave.dispatch.early_classifier import EarlyClassifier
from zweave.errors import ZweaveError
from zweave.experts import Expert

JUNK_TEXT = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["null", "[]", "{}", "1e999", '{"a": NaN}', "[" * 2000, "9" * 5000, "true"]),
)
TEMPLATE = st.one_of(
    JUNK_TEXT,
    st.builds(
        lambda fields: json.dumps({"version": 1, **fields}),
        st.fixed_dictionaries(
            {},
            optional={
                "version": st.sampled_from([1, 2, "1", None, 10**30]),
                "user": st.sampled_from(["{text}", "Q: {text}\n", "{text}{text}", "", 3, None]),
                "opening": st.sampled_from(["", "{text} =", [], None]),
                "labels": st.sampled_from([[], ["a"], ["a", "a"], ["a", "b"], "ab", [1, 2], None]),
                "max_tokens": st.sampled_from([1, 0, -1, 2.5, True, "3", 10**30]),
                "stop": st.sampled_from([[], ["\n"], [""], {}, None]),
                "chat": st.sampled_from([True, False, 1, None]),
                "else": st.none(),
            },
        ),
    ),
)
METADATA = {
    "format": st.sampled_from(["zweave-expert-1", "zweave-expert-9", "pt", ""]),
    "scope": st.one_of(st.sampled_from(["always", "after_prompt", "always, 7", "never"]), JUNK_TEXT),
    "first_layer": st.one_of(st.sampled_from(["0", "1", "-1", "01", "1.0", "99999"]), JUNK_TEXT),
    "support": st.one_of(st.sampled_from(["full", "leading:2", "sparse:2", "leading:R/8"]), JUNK_TEXT),
    "renormalise": st.one_of(st.sampled_from(["true", "false", "True"]), JUNK_TEXT),
    "training": st.one_of(st.sampled_from(['{"steps": 3}', "{}"]), JUNK_TEXT),
    "prompt_template": TEMPLATE,
    "description": JUNK_TEXT,
    "base_digest": JUNK_TEXT,
    "a key of its own": JUNK_TEXT,
}
NAMES = st.sampled_from(
    [
        "model.layers.0.self_attn.q_proj.z",
        "model.layers.1.mlp.down_proj.z",
        "model.layers.0.self_attn.k_proj.z_minus_1",
        "model.layers.0.self_attn.q_proj.z_minus_1",
        "model.layers.x.mlp.down_proj.z",
        "lm_head.z",
        ".z",
        "a\nb.z",
        "weight",
        "bias",
    ]
)
ARRAYS = st.builds(
    lambda values, dtype: np.array(values, dtype),
    st.one_of(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, -2.0, np.nan, np.inf, 1e30]), max_size=5),
        st.just([[1.0, 2.0]]),
        st.just(1.0),
    ),
    st.sampled_from(["<f4", "<f2", "<f8"]),
)
DTYPES = {"<f4": "F32", "<f2": "F16", "<f8": "F64"}


def _file(tensors, metadata):
    """A safetensors file of whatever names and metadata, which the library would not all write."""
    header, data = {"__metadata__": metadata}, b""
    for name, array in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": DTYPES[array.dtype.str], "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _read(load, path, content):
    """What a file of this content holds; None if it is refused, in one line."""
    path.write_bytes(content)
    try:
        with warnings.catch_warnings(record=True):
            return load(path)
    except ZweaveError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 600
        return None


def _check_expert(expert, path):
    if expert is None:
        return
    event("loaded")
    assert all(z.isfinite().all() and z.dim() == 1 for z in expert.z.values())
    expert.save(path)
    again = Expert.load(path)
    assert again.digest == expert.digest
    assert (again.scope, again.first_layer, again.support) == (
        expert.scope,
        expert.first_layer,
        expert.support,
    )
    assert (again.prompt_template, again.description) == (expert.prompt_template, expert.description)
    assert repr(again.training) == repr(expert.training)
    assert all(torch.equal(again.z[name], z) for name, z in expert.z.items())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("experts") / "e.safetensors"


@given(
    st.dictionaries(NAMES, ARRAYS, max_size=3),
    st.dictionaries(st.sampled_from(list(METADATA)), st.none(), max_size=3).flatmap(
        lambda keys: st.fixed_dictionaries({key: METADATA[key] for key in keys})
    ),
    st.booleans(),
)
def test_any_expert(path, tensors, metadata, good):
    # Half of the files hold a sound z, so that the metadata decide.
    if good:
        tensors = {"model.layers.0.self_attn.q_proj.z": np.array([1.0, 0.5, 2.0], "<f4")}
    content = _file(tensors, metadata)
    _check_expert(_read(Expert.load, path, content), path)
    assert _read(EarlyClassifier.load, path, content) is None


CLASSIFIER = {
    "labels": st.sampled_from([["a", "b"], ["a", "other"], ["a"], "ab", [1, 2], None, ["a", "a"]]),
    "layer": st.sampled_from([1, 0, -1, "2", 1.5, True, None, 10**30]),
    "training": st.sampled_from([{}, {"shots": 3}, [], None]),
}


@given(
    st.fixed_dictionaries({}, optional=CLASSIFIER),
    st.sampled_from(["zweave-early-classifier-1", "zweave-early-classifier-2", "zweave-expert-1"]),
    st.sampled_from([(2, 3), (3, 3), (2,), (0, 3)]),
    st.sampled_from([0.5, np.nan]),
    JUNK_TEXT,
    st.booleans(),
)
def test_any_classifier(path, facts, form, shape, value, junk, garbled):
    sound = {"labels": ["a", "b"], "layer": 1, "training": {}}
    metadata = {"format": form, "classifier": junk if garbled else json.dumps({**sound, **facts})}
    tensors = {"weight": np.full(shape, value, "<f4"), "bias": np.zeros(2, "<f4")}
    found = _read(EarlyClassifier.load, path, _file(tensors, metadata))
    if found is not None:
        event("loaded")
        probabilities = found.probabilities(torch.ones(4, 3))
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4))


@given(st.binary(max_size=20), st.integers(0, 300), st.booleans())
def test_any_bytes(path, piece, at, cut):
    content = _file({"model.layers.0.mlp.up_proj.z": np.array([1.0, 0.5], "<f4")}, {"scope": "always"})
    mangled = content[:at] + piece + (b"" if cut else content[at + len(piece) :])
    _check_expert(_read(Expert.load, path, mangled), path)
