import json

import pytest
import torch

from zweave.checkpoint import Checkpoint
from zweave.cli.main import main
from zweave.errors import ZweaveError
from zweave.experts import Expert
from zweave.experts.transfer import overlap, shuffled, transfer


def factors(weight):
    return torch.linalg.svd(weight, full_matrices=False)


@pytest.fixture
def weight():
    return torch.randn(64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def models(tiny_model):
    """A model, a copy of it rounded to bfloat16, and one of another shape."""
    return [
        Checkpoint(tiny_model("llama", **options))
        for options in ({}, {"dtype": "bfloat16"}, {"intermediate_size": 40})
    ]


def test_a_matrix_overlaps_itself(weight):
    same = overlap("up", factors(weight), factors(weight))
    assert (same.subspace, same.aligned, same.spectrum) == pytest.approx((1, 1, 1), abs=1e-5)
    assert same.chance == pytest.approx((8 / 64 + 8 / 96) / 2)


def test_signs_of_components_do_not_matter(weight):
    u, sigma, vt = factors(weight)
    sign = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    turned = overlap("up", (u, sigma, vt), (u * sign, sigma, vt * sign[:, None]))
    assert (turned.subspace, turned.aligned) == pytest.approx((1, 1), abs=1e-5)


def test_components_in_another_order_share_the_span_and_are_not_the_same(weight):
    u, sigma, vt = factors(weight)
    order = torch.cat([torch.arange(8).flip(0), torch.arange(8, 64)])
    found = overlap("up", (u, sigma, vt), (u[:, order], sigma, vt[order]))
    assert found.subspace == pytest.approx(1, abs=1e-5) and found.aligned == 0


def test_unrelated_matrices_overlap_by_chance(weight):
    other = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    found = overlap("up", factors(weight), factors(other))
    assert found.subspace == pytest.approx(found.chance, abs=0.06) and found.aligned == 0


def test_transfer_keeps_z_and_names_the_new_base(models, random_expert):
    source, target, _ = models
    made = random_expert(source.config.adapted_shapes(), 0, base_digest=source.digest())
    moved = transfer(made, source, target)
    moved.check(target.config.adapted_shapes(), target.digest())
    assert all(torch.equal(moved.z[name], z) for name, z in made.z.items())
    assert moved.training["transferred_from"] == source.digest()


def test_transfer_refuses_other_shapes_and_other_bases(models, random_expert):
    source, target, other = models
    made = random_expert(source.config.adapted_shapes(), 0, base_digest=source.digest())
    with pytest.raises(ZweaveError, match="equal shapes only"):
        transfer(made, source, other)
    with pytest.raises(ZweaveError, match="trained for other weights"):
        transfer(made, target, source)


def test_shuffled_keeps_values_and_support():
    name = "model.layers.0.mlp.up_proj"
    full = Expert(z={name: torch.randn(64, generator=torch.Generator().manual_seed(0))})
    mixed = shuffled(full, 1)
    assert torch.equal(mixed.z[name].sort().values, full.z[name].sort().values)
    assert not torch.equal(mixed.z[name], full.z[name])
    assert mixed.digest != shuffled(full, 2).digest and mixed.digest == shuffled(full, 1).digest
    leading = torch.ones(64)
    leading[:8] += torch.arange(1, 9) / 100
    kept = shuffled(Expert(z={name: leading}, support="leading:8"), 1)
    assert (kept.z[name][8:] == 1).all() and kept.support == "leading:8"


@pytest.mark.parametrize("options", [[], ["--all"], ["--shuffle", "3"], ["--json"]], ids=" ".join)
def test_command_line(options, models, random_expert, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    source, target, _ = models
    made = random_expert(source.config.adapted_shapes(), 0, base_digest=source.digest())
    made.save(tmp_path / "a.safetensors")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    argv = ["expert", "transfer", *paths, "--from", source.directory, "--to", target.directory, *options]
    assert main([str(arg) for arg in argv]) == 0
    out = capsys.readouterr().out
    moved = Expert.load(tmp_path / "b.safetensors")
    moved.check(target.config.adapted_shapes(), target.digest())
    if "--json" in options:
        matrices = json.loads(out)["matrices"]
        assert {entry["module"] for entry in matrices} == set(made.z)
        assert all(entry["subspace"] > 0.99 for entry in matrices)  # a rounded copy has nearly the same spans
    else:
        assert out.count("up_proj") == (2 if "--all" in options else 1)
        assert out.rstrip().endswith("b.safetensors")
    assert ("shuffled" in moved.training) == ("--shuffle" in options)
