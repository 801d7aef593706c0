"""Sakana's files: the weights that an imported expert stands for are those that their formula gives."""

import os
from collections import OrderedDict

import pytest
import torch
from torch import nn

from zweave.checkpoint import Checkpoint
from zweave.decomposition.svd import svd
from zweave.errors import ZweaveError
from zweave.experts import Bank, Mixture
from zweave.experts.sakana import load_sakana


@pytest.fixture(scope="module")
def checkpoint(tiny_model):
    return Checkpoint(tiny_model("llama"))


@pytest.fixture(scope="module")
def state(checkpoint):
    """The model's state dict in the order in which their code walks through it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32).state_dict()


class ReferencePolicy(nn.Module):
    """As much of their policy as is saved: a parameter list over the state dict's "mlp" entries."""

    def __init__(self, base_params):
        super().__init__()
        torch.manual_seed(0)
        self.learnable_params = {
            name: nn.Parameter(torch.randn(min(value.shape), dtype=torch.bfloat16) * 0.8 + 0.1)
            for name, value in base_params.items()
            if "mlp" in name
        }
        self.learnable_params_module_list = nn.ParameterList(list(self.learnable_params.values()))


def reference_weight(weight, learnt, max_mult):
    """Their composition, in float64 instead of bfloat16."""
    u, s, v = torch.svd(weight.double())
    mask = (torch.sigmoid(learnt).to(torch.bfloat16) * max_mult).double()
    return (u @ torch.diag_embed(s * mask) @ v.T) * (s.sum() / (s * mask).sum())


@pytest.mark.parametrize("max_mult", [1, 2.0, 0.3], ids=str)
@pytest.mark.parametrize("form", ["policy_params.pt", "learnable_params.pt"])
def test_merged_weights_are_theirs(tmp_path, checkpoint, state, form, max_mult):
    policy = ReferencePolicy(state)
    torch.save(policy.state_dict() if form.startswith("policy") else policy.learnable_params, tmp_path / form)
    shapes = checkpoint.config.adapted_shapes()
    expert = load_sakana(tmp_path / form, shapes, max_mult=max_mult, base_digest=checkpoint.digest())
    assert expert.renormalise and expert.scope == "always" and expert.base_digest == checkpoint.digest()
    assert len(expert.z) == 6 and all(".mlp." in module for module in expert.z)

    factors = {module: svd(checkpoint.tensor(f"{module}.weight")) for module in shapes}
    bank = Bank({module: found.sigma for module, found in factors.items()}, 2)
    bank.load("imported", expert)
    slot = bank.acquire(Mixture.parse("imported"))
    for module, found in factors.items():
        merged = (found.u * bank.tables.columns(module)[slot]) @ found.vt
        weight = state[f"{module}.weight"]
        if module in expert.z:
            weight = reference_weight(weight, policy.learnable_params[f"{module}.weight"], max_mult).float()
        torch.testing.assert_close(merged, weight, rtol=1e-4, atol=2e-5)


def test_parameters_in_another_device_or_type_are_read(tmp_path, checkpoint, state):
    learnt = {name: value.detach().float() for name, value in ReferencePolicy(state).learnable_params.items()}
    torch.save(learnt, tmp_path / "learnable_params.pt")
    expert = load_sakana(tmp_path / "learnable_params.pt", checkpoint.config.adapted_shapes())
    for module, z in expert.z.items():
        assert torch.equal(z, torch.sigmoid(learnt[f"{module}.weight"]).bfloat16().float())


def listed(count, rank=32):
    return {f"learnable_params_module_list.{index}": torch.zeros(rank) for index in range(count)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (listed(5), "lacks 'learnable_params_module_list.5'"),
        (listed(7), "holds 'learnable_params_module_list.6' besides"),
        (listed(6, rank=31), "z has 31 values and the matrix has rank 32"),
        ({**listed(5), "learnable_params_module_list.5": torch.zeros(32, 1)}, "vector"),
        ({**listed(5), "learnable_params_module_list.5": torch.full((32,), float("nan"))}, "NaN"),
        ({**listed(5), "learnable_params_module_list.5": torch.zeros(32).int()}, "floating-point"),
        ({**listed(5), "learnable_params_module_list.5": 3}, "floating-point"),
        (
            {"model.layers.0.mlp.gate_proj.weight": torch.zeros(32)},
            "lacks 'model.layers.0.mlp.up_proj.weight'",
        ),
        ({"adaptive_weights": torch.ones(2, 1)}, "weighted combination"),
        ({}, "no dictionary"),
        (torch.ones(3), "no dictionary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_content_is_refused_in_one_line(tmp_path, checkpoint, content, message):
    path = tmp_path / "policy_params.pt"
    torch.save(OrderedDict(content) if isinstance(content, dict) else content, path)
    with pytest.raises(ZweaveError, match=message) as raised:
        load_sakana(path, checkpoint.config.adapted_shapes())
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_files_are_refused_and_not_run(tmp_path, checkpoint):
    path = tmp_path / "policy_params.pt"
    torch.save({**listed(6), "x": Payload(tmp_path / "hacked")}, path)
    with pytest.raises(ZweaveError, match="tensors only; nothing in it was run"):
        load_sakana(path, checkpoint.config.adapted_shapes())
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 100])
def test_damaged_files_are_refused(tmp_path, checkpoint, content):
    path = tmp_path / "policy_params.pt"
    path.write_bytes(content)
    with pytest.raises(ZweaveError, match="not a PyTorch file"):
        load_sakana(path, checkpoint.config.adapted_shapes())


def test_missing_files_are_named(tmp_path, checkpoint):
    with pytest.raises(ZweaveError, match=r"none\.pt: there is no such file"):
        load_sakana(tmp_path / "none.pt", checkpoint.config.adapted_shapes())
