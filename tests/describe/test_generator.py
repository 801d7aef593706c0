"""The generator: z of 1 at the start, every description by itself, gradients that are right."""

import copy

import pytest
import torch

from zweave.checkpoint.module_name import layer_of
from zweave.describe.generator import Generator, GeneratorConfig, change
from zweave.describe.token_states import TokenStates
from zweave.errors import ZweaveError

RANKS = {
    f"model.layers.{layer}.{name}": rank
    for layer in range(3)
    for name, rank in (("self_attn.q_proj", 8), ("self_attn.k_proj", 4), ("mlp.down_proj", 8))
}


def texts(count: int) -> TokenStates:
    """Of 2, 3, ... tokens."""
    mask = torch.arange(count + 1) < torch.arange(2, count + 2)[:, None]
    states = torch.randn(count, count + 1, 6, generator=torch.Generator().manual_seed(count))
    return TokenStates(states * mask[..., None], mask)


@pytest.fixture(params=[0, 1], ids=["one part", "two parts"])
def generator(request: pytest.FixtureRequest) -> Generator:
    """Whose basis is not 0 any more."""
    torch.manual_seed(0)
    made = Generator(GeneratorConfig(width=6, task=8, code=5, upper_layer=request.param), RANKS)
    with torch.no_grad():
        for part in made.parts:
            part.basis.normal_()
    return made


def test_a_new_generator_makes_the_base_model():
    made = Generator(GeneratorConfig(width=6), RANKS)
    z = made(texts(2))
    assert list(z) == list(RANKS) and all(z[name].shape == (2, rank) for name, rank in RANKS.items())
    assert all((part == 1).all() for part in z.values())
    z["model.layers.1.mlp.down_proj"].sum().backward()
    assert made.parts[0].basis.grad.any(0).tolist() == [
        name == "model.layers.1.mlp.down_proj" for name, rank in RANKS.items() for _ in range(rank)
    ]


def test_matrices_and_descriptions_differ(generator: Generator):
    z = generator(texts(2))
    assert not torch.allclose(z["model.layers.0.mlp.down_proj"], z["model.layers.1.mlp.down_proj"])
    assert not torch.allclose(z["model.layers.0.mlp.down_proj"], z["model.layers.0.self_attn.q_proj"])
    assert all(not torch.allclose(part[0], part[1]) for part in z.values())


def test_parts_follow_from_what_each_is_told():
    made = Generator(GeneratorConfig(width=6, task=8, code=5, upper_layer=1), RANKS)
    for part in made.parts:
        torch.nn.init.normal_(part.basis)
    one, other = texts(5)[torch.tensor([0])], texts(5)[torch.tensor([3])]
    whole, across = made(one), made(one, other)
    assert list(across) == list(RANKS)
    for name, z in made(other).items():
        assert torch.equal(across[name], z if layer_of(name) >= 1 else whole[name])
        assert not torch.equal(z, whole[name])
    with pytest.raises(ZweaveError, match="lie on both sides of layer 3"):
        Generator(GeneratorConfig(width=6, upper_layer=3), RANKS)


def test_a_description_does_not_depend_on_the_others(generator: Generator):
    five = texts(5)
    together = generator(five)
    for index in range(5):
        alone = generator(five[torch.tensor([index])])
        for name, part in together.items():
            torch.testing.assert_close(part[index], alone[name][0], rtol=1e-5, atol=1e-6)


def test_gradients_match_finite_differences(generator: Generator):
    double = copy.deepcopy(generator).double()
    three = texts(3)
    three = TokenStates(three.states.double(), three.mask)
    weights = [torch.randn(3, rank, dtype=torch.float64) for rank in RANKS.values()]

    def value() -> torch.Tensor:
        return sum((z * w).sum() for z, w in zip(double(three).values(), weights, strict=True))

    value().backward()
    for parameter in double.parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-6 * direction
            above = value()
            parameter -= 2e-6 * direction
            below = value()
            parameter += 1e-6 * direction
        slope = (parameter.grad * direction).sum()
        torch.testing.assert_close((above - below) / 2e-6, slope, rtol=1e-5, atol=1e-7)


def test_the_change_is_that_of_the_matrices():
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.layers.0.mlp.up_proj": (9, 6), "model.layers.0.mlp.down_proj": (6, 9)}
    z, sigma, shares = {}, {}, []
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator)
        u, sigma[name], vt = torch.linalg.svd(weight, full_matrices=False)
        z[name] = 1 + 0.1 * torch.randn(1, 6, generator=generator)
        moved = (u * (sigma[name] * z[name][0])) @ vt
        shares.append((moved - weight).square().sum() / weight.square().sum())
    torch.testing.assert_close(change(z, sigma)[0], torch.stack(shares).mean())


def test_what_cannot_be_is_told():
    with pytest.raises(ZweaveError, match="code must be a whole number of at least 1, not 0"):
        GeneratorConfig(width=6, code=0)
    with pytest.raises(ZweaveError, match="task must be a multiple of 4, not 6"):
        GeneratorConfig(width=6, task=6)
