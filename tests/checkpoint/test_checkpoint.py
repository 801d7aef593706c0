"""Reading safetensors checkpoints of every architecture, and refusing what is damaged or unsafe."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from zweave.checkpoint import Checkpoint, resolve_model
from zweave.checkpoint.pull import model_directory
from zweave.engine import Engine
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


@pytest.fixture
def tied(copy):
    """A tied model whose tensors may be changed."""

    def make(change):
        directory = copy(tie_word_embeddings=True)
        _change(directory, change)
        return directory

    return make


def _logits(directory, prompt):
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(
            torch.tensor([prompt])
        ).logits[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_stored_head_that_differs_is_not_tied(tied, prompt_logits, dtype):
    head = torch.randn(264, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    directory = tied(lambda tensors: tensors.update({"lm_head.weight": head}))
    with pytest.warns(UserWarning, match=r"different lm_head\.weight: it is used"):
        checkpoint = Checkpoint(directory)
    assert not checkpoint.config.tie_embeddings
    assert torch.equal(checkpoint.tensor("lm_head.weight"), head)
    with pytest.warns(UserWarning, match="different"):
        engine = Engine(directory, dtype="float32", kv_tokens=64)
    prompt = [5, 7, 11, 13]
    (logits,) = prompt_logits(engine, [(prompt, None)])
    torch.testing.assert_close(logits, _logits(directory, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_stored_head_that_is_the_embedding_stays_tied(tied, dtype, recwarn):
    directory = tied(
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].to(dtype, copy=True)}
        )
    )
    assert Checkpoint(directory).config.tie_embeddings
    assert "lm_head.weight" not in Checkpoint(directory).names()
    assert not recwarn.list


def test_the_head_stands_for_an_embedding_that_is_not_stored(tied):
    """safetensors' save_model keeps one name of those that share memory, and this one."""
    directory = tied(
        lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")})
    )
    stored = load_file(directory / "model.safetensors")["lm_head.weight"]
    assert torch.equal(Checkpoint(directory).tensor("model.embed_tokens.weight"), stored)


def test_a_model_saved_without_its_head(tiny_model, tmp_path):
    """As `Qwen3Model` and its like are saved: no `model.` in front of the names."""
    for tie in (True, False):
        source = tiny_model("qwen3", tie_word_embeddings=tie)
        AutoModel.from_pretrained(source).save_pretrained(tmp_path / str(tie))
        config = json.loads((tmp_path / str(tie) / "config.json").read_text())
        assert config["architectures"] == ["Qwen3Model"]
        assert "embed_tokens.weight" in load_file(tmp_path / str(tie) / "model.safetensors")
    with pytest.warns(UserWarning, match="'Qwen3Model'.*read as Qwen3ForCausalLM"):
        ours = Checkpoint(tmp_path / "True")
    expected = Checkpoint(tiny_model("qwen3", tie_word_embeddings=True))
    assert ours.config == expected.config
    for name in expected.names():
        assert torch.equal(ours.tensor(name), expected.tensor(name)), name
    with (
        pytest.warns(UserWarning, match="'Qwen3Model'"),
        pytest.raises(ZweaveError, match=r"has no lm_head\.weight.*a model without a head says nothing"),
    ):
        Checkpoint(tmp_path / "False")


def test_tensors_of_no_use_are_named(copy):
    directory = copy()
    more = {
        "score.weight": torch.ones(2, 32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    _change(directory, lambda tensors: tensors.update(more))
    with pytest.warns(UserWarning, match=r"LlamaForCausalLM has no score\.weight: 1 tensors are ignored"):
        Checkpoint(directory)


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
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


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


def test_one_file_goes_before_an_index(copy):
    """As in transformers; the index and its shards may be left over from a former save."""
    directory = copy(max_shard_size="20KB")
    state = {name: Checkpoint(directory).tensor(name) * 2 for name in Checkpoint(directory).names()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    name = "model.layers.1.mlp.down_proj.weight"
    theirs = AutoModelForCausalLM.from_pretrained(directory).state_dict()[name]
    assert torch.equal(Checkpoint(directory).tensor(name), theirs)
    assert torch.equal(theirs, state[name])


def test_shards_without_an_index(copy):
    directory = copy(max_shard_size="20KB")
    expected = Checkpoint(directory).digest()
    (directory / INDEX).unlink()
    assert Checkpoint(directory).digest() == expected
    first, *_, last = sorted(directory.glob("model-*.safetensors"))
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(ZweaveError, match=rf"{last.name} is missing"):
        Checkpoint(directory)
    last.write_bytes(first.read_bytes())
    with pytest.raises(ZweaveError, match=r"which another shard holds, too"):
        Checkpoint(directory)
    last.write_bytes(content)
    shutil.copy(first, directory / "other-00001-of-00002.safetensors")
    with pytest.raises(ZweaveError, match="shards of several models"):
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
        ("model.gguf", r"give the file itself \(model\.gguf\)"),
        ("MODEL.GGUF", r"give the file itself \(MODEL\.GGUF\)"),
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
    with pytest.raises(ZweaveError, match=r"config\.json is no GGUF file: give one, or the directory"):
        resolve_model(directory / "config.json")
    shutil.copytree(directory, model_directory("smollm2"))
    assert resolve_model("smollm2").directory == model_directory("smollm2")
