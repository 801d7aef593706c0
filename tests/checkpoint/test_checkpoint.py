"""Reading safetensors checkpoints of every architecture, and refusing what is damaged or unsafe."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from zweave.checkpoint import Checkpoint, resolve_model
from zweave.errors import ZweaveError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A copy of a tiny model that may be damaged; sharded on demand."""

    def make(**options):
        target = tmp_path / "model"
        shutil.copytree(tiny_model("llama", **options), target)
        return target

    return make


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("size", ["1GB", "20KB"], ids=["single", "sharded"])
def test_tensors_are_those_of_transformers(tiny_model, architecture, size):
    directory = tiny_model(architecture, max_shard_size=size)
    assert (directory / INDEX).exists() == (size == "20KB")
    checkpoint = Checkpoint(directory)
    state = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").state_dict()
    assert set(checkpoint.names()) == set(state)
    for name, expected in state.items():
        torch.testing.assert_close(checkpoint.tensor(name), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tensors_come_as_stored(tiny_model, dtype):
    checkpoint = Checkpoint(tiny_model("llama", dtype=dtype))
    assert {checkpoint.tensor(name).dtype for name in checkpoint.names()} == {getattr(torch, dtype)}


def test_tensors_are_memory_mapped(tiny_model):
    directory = tiny_model("llama")
    checkpoint = Checkpoint(directory)
    tensor = checkpoint.tensor("model.norm.weight")
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if str(directory) in line]
    assert any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in spans)


def test_tied_head_is_no_tensor(tiny_model):
    assert "lm_head.weight" not in Checkpoint(tiny_model("llama", tie_word_embeddings=True)).names()


def test_digest_is_of_the_adapted_weights_alone(tiny_model, copy):
    reference = Checkpoint(tiny_model("llama")).digest()
    assert len(reference) == 64
    assert Checkpoint(tiny_model("llama", max_shard_size="20KB")).digest() == reference
    assert Checkpoint(tiny_model("llama", dtype="bfloat16")).digest() != reference
    directory = copy()
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, directory / "model.safetensors")
    assert Checkpoint(directory).digest() == reference
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 1
    save_file(tensors, directory / "model.safetensors")
    assert Checkpoint(directory).digest() != reference


def test_digest_stays_what_it_is(tmp_path):
    """Decompositions and experts are kept under this value: it may never change."""
    sizes = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1}
    config = {"model_type": "llama", "vocab_size": 2, "tie_word_embeddings": True, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    norms = ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]
    modules = [f"self_attn.{name}_proj" for name in "qkvo"] + [
        f"mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    tensors = {f"{name}.weight": torch.ones(2) for name in norms} | {
        "model.embed_tokens.weight": torch.ones(2, 2)
    }
    for index, module in enumerate(modules):
        tensors[f"model.layers.0.{module}.weight"] = torch.full((2, 2), float(index))
    save_file(tensors, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).digest() == "320f09cf4e8c5e9d88d81864e3b093cab059a104ce746499650957ceb1d5804c"


def _truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _empty(directory):
    (directory / "model.safetensors").write_bytes(b"")


def _oversized_header(directory):
    path = directory / "model.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + path.read_bytes()[8:])


def _overlapping_offsets(directory):
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 50]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)


def _pickle_in_disguise(directory):
    torch.save({"a": torch.ones(2)}, directory / "model.safetensors")


@pytest.mark.parametrize(
    "damage", [_truncate, _empty, _oversized_header, _overlapping_offsets, _pickle_in_disguise]
)
def test_damaged_file(copy, damage):
    directory = copy()
    damage(directory)
    with pytest.raises(ZweaveError, match=r"model\.safetensors is damaged") as caught:
        Checkpoint(directory)
    assert "\n" not in str(caught.value)


def _change(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_missing_tensors_are_named_in_short(copy):
    directory = copy()
    _change(
        directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1.mlp" in name]
    )
    with pytest.raises(
        ZweaveError, match=r"lacks 3 tensors, e\.g\. model\.layers\.1\.mlp\.gate_proj\.weight"
    ):
        Checkpoint(directory)
    _change(directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers" in name])
    with pytest.raises(ZweaveError) as caught:
        Checkpoint(directory)
    assert len(str(caught.value)) < 400


def test_wrong_shape_and_dtype(copy):
    directory = copy()
    name = "model.layers.0.self_attn.k_proj.weight"
    _change(directory, lambda tensors: tensors.update({name: torch.ones(16, 31)}))
    with pytest.raises(ZweaveError, match=r"k_proj\.weight has shape \(16, 31\), the config says \(16, 32\)"):
        Checkpoint(directory)
    _change(directory, lambda tensors: tensors.update({name: torch.ones(16, 32, dtype=torch.int8)}))
    with pytest.raises(ZweaveError, match=r"k_proj\.weight has dtype I8"):
        Checkpoint(directory)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "a\\b.safetensors", ""]
)
def test_shards_stay_in_the_directory(copy, shard):
    directory = copy(max_shard_size="20KB")
    shutil.copy(next(directory.glob("model-*.safetensors")), directory.parent / "outside.safetensors")
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(ZweaveError, match="not a file beside it"):
        Checkpoint(directory)


def test_damaged_index(copy):
    directory = copy(max_shard_size="20KB")
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["absent.weight"] = index["weight_map"]["model.norm.weight"]
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(ZweaveError, match=r"lack 1 tensors of the index, e\.g\. absent\.weight"):
        Checkpoint(directory)
    for content in ("{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        (directory / INDEX).write_text(content)
        with pytest.raises(ZweaveError, match="no weight_map"):
            Checkpoint(directory)


def test_missing_shard(copy):
    directory = copy(max_shard_size="20KB")
    next(directory.glob("model-*.safetensors")).unlink()
    with pytest.raises(ZweaveError, match=r"model-.*\.safetensors is missing"):
        Checkpoint(directory)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "pickled"),
        ("model.gguf", r"give the \.gguf file itself"),
        ("README", "has no model.safetensors"),
    ],
)
def test_directory_without_safetensors(copy, name, message):
    directory = copy()
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(b"")
    with pytest.raises(ZweaveError, match=message):
        Checkpoint(directory)


def test_resolve_model(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path))
    directory = tiny_model("llama")
    assert resolve_model(directory).directory == directory
    assert resolve_model(str(directory)).directory == directory
    with pytest.raises(ZweaveError, match="run `zweave pull smollm2`"):
        resolve_model("smollm2")
    with pytest.raises(ZweaveError, match=r"no model 'nothing'.*smollm2"):
        resolve_model("nothing")
    shutil.copytree(directory, tmp_path / "models" / "smollm2")
    assert resolve_model("smollm2").directory == tmp_path / "models" / "smollm2"
