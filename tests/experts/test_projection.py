"""Experts that come closest to LoRAs, against dense computation."""

import pytest
import torch
from torch import Tensor

from zweave.adapters.lora import Lora, LoraPair
from zweave.checkpoint import Checkpoint
from zweave.decomposition import decompose
from zweave.errors import ZweaveError
from zweave.experts.projection import Kept, by_kind, project, project_pair, total
from zweave.text.prompt_template import PromptTemplate


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_lora_of_an_experts_own_components_gives_back_the_expert(tiny_model) -> None:
    decomposition = decompose(Checkpoint(tiny_model("llama")))
    pairs, wanted = {}, {}
    for index, module in enumerate(decomposition.names[1:4]):
        u, sigma, vt = decomposition.factors(module)
        change = values(5, seed=index)
        wanted[module] = torch.ones_like(sigma)
        wanted[module][:5] += change
        pairs[module] = LoraPair(vt[:5].clone(), u[:, :5] * sigma[:5] * change / 0.25, 0.25)
    words = PromptTemplate("Say {text}", "So")
    lora = Lora(pairs, scope="after_prompt", description="mine", prompt_template=words)
    expert, kept = project(lora, decomposition)
    assert expert.z.keys() == wanted.keys()
    for module, z in expert.z.items():
        torch.testing.assert_close(z, wanted[module], rtol=1e-4, atol=1e-4)
    assert [entry.share for entry in kept] == pytest.approx([1, 1, 1], abs=1e-5)
    assert (expert.scope, expert.description, expert.prompt_template, expert.base_digest) == (
        "after_prompt",
        "mine",
        words,
        decomposition.digest,
    )


def test_it_is_the_least_squares_solution() -> None:
    weight, pair = values(9, 14).double(), LoraPair(values(3, 14, seed=1), values(9, 3, seed=2), 0.5)
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    z, squared, kept = project_pair(pair, (u.float(), sigma.float(), vt.float()))
    product = 0.5 * pair.b.double() @ pair.a.double()
    columns = torch.stack([(sigma[j] * torch.outer(u[:, j], vt[j])).flatten() for j in range(9)], 1)
    wanted = torch.linalg.lstsq(columns, product.flatten()[:, None]).solution.flatten()
    torch.testing.assert_close(z.double() - 1, wanted, rtol=1e-4, atol=1e-5)
    assert squared == pytest.approx(float(product.square().sum()))
    rest = (product - (u * (sigma * wanted)) @ vt).square().sum()
    assert kept == pytest.approx(float(product.square().sum() - rest), rel=1e-5)


def test_components_without_a_singular_value_stay_as_they_are() -> None:
    u, _, vt = torch.linalg.svd(values(6, 8), full_matrices=False)
    sigma = torch.tensor([3.0, 2.0, 1.0, 0.5, 1e-9, 0.0])
    z, _, kept = project_pair(LoraPair(vt[3:], u[:, 3:], 1.0), (u, sigma, vt))
    torch.testing.assert_close(z, torch.tensor([1.0, 1.0, 1.0, 3.0, 1.0, 1.0]), rtol=1e-5, atol=1e-5)
    assert kept == pytest.approx(1)


def test_shares_of_kinds_are_of_their_sums() -> None:
    kept = [
        Kept(f"model.layers.{i}.mlp.{kind}", 4.0 * i, i, i / 10)
        for i in (1, 2)
        for kind in ("up_proj", "down_proj")
    ]
    assert [(entry.module, entry.squared, entry.kept) for entry in by_kind(kept)] == [
        ("up_proj", 12, 3),
        ("down_proj", 12, 3),
    ]
    assert total(kept).share == 0.25 and total(kept).chance == pytest.approx(0.025)
    assert Kept("none", 0.0, 0.0, 0.0).share == 1


def test_of_random_matrices_chance_is_kept(tiny_model) -> None:
    decomposition = decompose(Checkpoint(tiny_model("llama")))
    module = decomposition.names[-1]
    rows, columns = decomposition.matrices[module].shape
    shares = []
    for seed in range(100):
        pair = LoraPair(values(4, columns, seed=seed), values(rows, 4, seed=seed + 1000), 1.0)
        _, (kept,) = project(Lora({module: pair}), decomposition)
        shares.append(kept.share)
    assert sum(shares) / 100 == pytest.approx(kept.chance, rel=0.1)


def test_what_is_activated_by_tokens_cannot_be_an_expert(tiny_model) -> None:
    decomposition = decompose(Checkpoint(tiny_model("llama")))
    module = decomposition.names[0]
    rows, columns = decomposition.matrices[module].shape
    lora = Lora({module: LoraPair(values(1, columns), values(rows, 1), 1.0)}, "after_prompt", (3,))
    with pytest.raises(ZweaveError, match="activated by tokens, and no expert is"):
        project(lora, decomposition)
