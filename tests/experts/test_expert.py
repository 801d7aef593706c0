"""Expert files: what is written is read back, and whatever is wrong with one is said in one line."""

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import zweave.io.tensor_file
from zweave.checkpoint.module_name import layer_of
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.text import PromptTemplate

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def make(**fields):
    generator = torch.Generator().manual_seed(1)
    z = {name: 1 + 0.02 * torch.randn(rank, generator=generator) for name, rank in ((Q, 199), (UP, 63))}
    return Expert(**{"z": z, **fields})


def assert_same_z(a, b):
    assert sorted(a.z) == sorted(b.z)
    for module, z in a.z.items():
        torch.testing.assert_close(b.z[module], z, rtol=0, atol=0)


@pytest.fixture
def data_directory() -> Path:
    if "ZWEAVE_DATA" not in os.environ:
        pytest.skip("ZWEAVE_DATA names no directory with tasks/ and experts/")
    return Path(os.environ["ZWEAVE_DATA"])


def test_file_keeps_every_field(tmp_path):
    expert = make(
        base_digest="ab" * 32,
        scope="after_prompt",
        renormalise=True,
        description="línes\nand [red]markup[/]",
        training={"steps": 60, "rates": [0.1, 2e-3], "note": {"a": None}},
        prompt_template=PromptTemplate("Über {text}?\n", "It's", (" yes", " no"), 1, ("\n",)),
    )
    expert.save(tmp_path / "e.safetensors")
    loaded = Expert.load(tmp_path / "e.safetensors")
    assert_same_z(expert, loaded)
    for name in Expert.__slots__:
        assert name == "z" or getattr(loaded, name) == getattr(expert, name), name
    assert loaded.digest == expert.digest


def test_first_layer_is_kept(tmp_path):
    expert = Expert(z={UP: torch.ones(4)}, first_layer=1)
    expert.save(tmp_path / "e.safetensors")
    assert Expert.load(tmp_path / "e.safetensors").first_layer == 1


def test_half_precision_is_of_z_minus_1(tmp_path):
    expert = make()
    expert.save(tmp_path / "full.safetensors")
    expert.save(tmp_path / "half.safetensors", half=True)
    loaded = Expert.load(tmp_path / "half.safetensors")
    for module, z in expert.z.items():
        assert loaded.z[module].dtype == torch.float32
        error = (loaded.z[module] - z).norm() / (z - 1).norm()
        assert 0 < error < 3e-4
    sizes = [(tmp_path / name).stat().st_size for name in ("full.safetensors", "half.safetensors")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * (199 + 63), abs=64)


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(ZweaveError, match="too large for float16"):
        Expert(z={Q: torch.tensor([1e5])}).save(tmp_path / "e.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_digest_is_of_what_the_expert_computes():
    expert = make()
    reordered = Expert(
        z=dict(reversed(expert.z.items())),
        description="other",
        training={"a": 1},
        base_digest="x",
        prompt_template=PromptTemplate(),
    )
    assert reordered.digest == expert.digest
    changed = {**expert.z, Q: expert.z[Q].clone()}
    changed[Q][7] = changed[Q][7].nextafter(torch.tensor(9.0))
    others = [
        Expert(z=changed),
        Expert(z={Q: expert.z[Q]}),
        make(scope="after_prompt"),
        make(renormalise=True),
    ]
    assert len({expert.digest, *(other.digest for other in others)}) == 5


def test_fixture_experts_load(data_directory):
    files = sorted((data_directory / "experts").glob("*.safetensors"))
    assert len(files) == 5
    for path in files:
        expert = Expert.load(path)
        assert len(expert.z) == 210 and sum(z.numel() for z in expert.z.values()) == 97920
        assert expert.scope == ("after_prompt" if path.stem.endswith("after-prompt") else "always")
        assert expert.base_digest is None and not expert.renormalise
        # What the format does not know is kept.
        assert float(expert.training["adapted_accuracy"]) > 0.7


def test_loaded_expert_does_not_hang_on_its_file(tmp_path):
    path = tmp_path / "e.safetensors"
    make().save(path)
    loaded = Expert.load(path)
    with path.open("r+b") as file:
        file.truncate(10)
    assert_same_z(loaded, make())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"z": {}}, "no z vectors"),
        ({"z": {"lm_head": torch.ones(3)}}, "not a matrix that an expert can adapt"),
        ({"z": {"model.layers.0": torch.ones(3)}}, "not a matrix that an expert can adapt"),
        ({"z": {"model.layers.0.mlp.up/proj": torch.ones(3)}}, "not a matrix that an expert can adapt"),
        ({"z": {"model.layers.00.mlp.up_proj": torch.ones(3)}}, "not a matrix that an expert can adapt"),
        ({"z": {UP + ".weight": torch.ones(3)}}, "not a matrix that an expert can adapt"),
        ({"z": {UP: torch.ones(3, dtype=torch.float64)}}, "vector of float32"),
        ({"z": {UP: torch.ones(3, 1)}}, "vector of float32"),
        ({"z": {UP: torch.ones(0)}}, "vector of float32"),
        ({"z": {Q: torch.ones(3), UP: torch.tensor([1, float("nan")])}}, f"{UP}: z holds NaN"),
        ({"z": {UP: torch.tensor([1, float("inf")])}}, f"{UP}: z holds NaN or infinity"),
        ({"scope": "sometimes"}, "scope"),
        ({"first_layer": 1}, f"{Q} lies below first_layer"),
        ({"first_layer": -1}, "at least 0"),
        ({"support": "leading 72"}, "support"),
        ({"description": "caf\udce9"}, "lone surrogate"),
    ],
)
def test_wrong_experts_are_refused(fields, message):
    with pytest.raises(ZweaveError, match=message):
        make(**fields)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"x": torch.ones(2)}, {}, "not an expert file"),
        ({f"{UP}.weight": torch.ones(2)}, {}, "not an expert file"),
        ({f"../{UP}.z": torch.ones(2)}, {}, "not a matrix"),
        ({f"{UP}.z": torch.ones(2).half()}, {}, "must be a vector of F32, not F16"),
        ({f"{UP}.z_minus_1": torch.ones(2)}, {}, "must be a vector of F16, not F32"),
        ({f"{UP}.z": torch.ones(2, 2)}, {}, "must be a vector"),
        ({f"{UP}.z": torch.tensor([float("nan")])}, {}, f"{UP}: z holds NaN"),
        ({f"{UP}.z_minus_1": torch.tensor([float("inf")]).half()}, {}, f"{UP}: z holds NaN or infinity"),
        ({f"{UP}.z": torch.ones(2), f"{UP}.z_minus_1": torch.ones(2).half()}, {}, "both"),
        ({f"{UP}.z": torch.ones(2)}, {"format": "zweave-expert-9"}, "zweave-expert-9"),
        ({f"{UP}.z": torch.ones(2)}, {"scope": "never, ever"}, "'never'"),
        ({f"{UP}.z": torch.ones(2)}, {"first_layer": "-1"}, "first_layer"),
        ({f"{UP}.z": torch.ones(2)}, {"first_layer": "9" * 5000}, "first_layer"),
        ({f"{UP}.z": torch.ones(2)}, {"renormalise": "yes"}, "renormalise"),
        ({f"{UP}.z": torch.ones(2)}, {"training": "[1]"}, "training record"),
        ({f"{UP}.z": torch.ones(2)}, {"training": "[" * 100_000}, "training record"),
        ({f"{UP}.z": torch.ones(2)}, {"support": "top 1/8"}, "support"),
        ({f"{UP}.z": torch.ones(2)}, {"prompt_template": "{text}"}, "prompt template is not a JSON object"),
        ({f"{UP}.z": torch.ones(2)}, {"prompt_template": '{"version": 2}'}, "this zweave reads 1"),
    ],
)
def test_wrong_files_are_refused(tmp_path, tensors, metadata, message):
    path = tmp_path / "e.safetensors"
    save_file(tensors, path, metadata)
    assert_one_line(path, message)


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
def test_truncated_files_are_refused(tmp_path, cut):
    path = tmp_path / "e.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:cut])
    assert_one_line(path, "not a whole safetensors file")


def test_oversized_header_is_refused(tmp_path):
    path = tmp_path / "e.safetensors"
    make().save(path)
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])
    assert_one_line(path, "not a whole safetensors file")


def test_offsets_outside_the_file_are_refused(tmp_path):
    path = tmp_path / "e.safetensors"
    header = json.dumps({f"{UP}.z": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert_one_line(path, "not a whole safetensors file")


def test_pickles_are_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    path = tmp_path / "e.safetensors"
    path.write_bytes(pickle.dumps(Payload()))
    assert_one_line(path, "not a whole safetensors file")
    torch.save(Payload(), path)
    assert_one_line(path, "not a whole safetensors file")
    assert not (tmp_path / "hacked").exists()


def test_missing_files_and_folders_are_named(tmp_path):
    assert_one_line(tmp_path / "none.safetensors", "no such file")
    assert_one_line(tmp_path, "is a directory without adapter_config")


def assert_one_line(path: Path, message: str) -> None:
    with pytest.raises(ZweaveError, match=message) as raised:
        Expert.load(path)
    text = str(raised.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < len(str(path)) + 300


def test_check_compares_with_the_model():
    expert = make(base_digest="a" * 64)
    expert.check({Q: (199, 300), UP: (400, 63)}, "a" * 64)
    expert.check({Q: (199,), UP: (63,), "model.layers.9.mlp.up_proj": (5,)})
    with pytest.raises(ZweaveError, match=f"{UP}: z has 63 values and the matrix has rank 64"):
        expert.check({Q: (199, 300), UP: (400, 64)})
    with pytest.raises(ZweaveError, match=f"no matrix {UP}"):
        expert.check({Q: (199, 300)})
    with pytest.raises(
        ZweaveError, match=r"other weights .base 'aaaaaaaaaaaa', the model's is 'bbbbbbbbbbbb'"
    ):
        expert.check({Q: (199, 300), UP: (400, 63)}, "b" * 64)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "e.safetensors"
    make().save(path)
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        Path(file).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zweave.io.tensor_file, "save_file", full_disk)
    with pytest.raises(ZweaveError, match="no space left"):
        make(scope="after_prompt").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_needs_a_folder_and_a_file_name(tmp_path):
    with pytest.raises(ZweaveError, match="no such folder"):
        make().save(tmp_path / "none" / "e.safetensors")
    with pytest.raises(ZweaveError, match="is a folder"):
        make().save(tmp_path)


def test_saved_file_has_the_usual_mode(tmp_path):
    make().save(tmp_path / "e.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "e.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("model.layers.12.mlp.gate_proj", 12),
        ("model.layers.0.self_attn.o_proj", 0),
        ("transformer.h.3.attn.c_attn", 3),
        ("decoder.block.1.layer.2.DenseReluDense.wo", 1),
    ],
)
def test_layer_of(module, layer):
    assert layer_of(module) == layer
