"""Attached experts in compiled models, and hooks on the linears that they replace."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from zweave.decomposition import Decomposition
from zweave.experts import Expert
from zweave.io.progress import silent

pytest.importorskip("transformers")

from zweave.integrations.transformers import Attached, attach

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).tanh())


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def model() -> Stack:
    torch.manual_seed(0)
    return Stack()


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def with_experts(model: nn.Module, random_expert: Callable[..., Expert]) -> Attached:
    attached = attach(model, progress=silent)
    shapes = {name: m.shape for name, m in Decomposition.open(attached.base_digest).matrices.items()}
    for seed, name in enumerate("ab"):
        attached.load(name, random_expert(shapes, seed=seed))
    return attached


CHOICES = (["a", None], "b", None, ["b", "a"])


@torch.no_grad()
def test_a_compiled_model_follows_its_experts(model, random_expert):
    attached = with_experts(model, random_expert)
    compiled = torch.compile(model, backend="eager")
    for choice in CHOICES:
        with attached.use(choice):
            torch.testing.assert_close(compiled(X), model(X))


@torch.no_grad()
@pytest.mark.parametrize("part", ["whole", "layer"])
def test_attaching_to_a_compiled_model(part, model, random_expert):
    plain = copy.deepcopy(model)
    wanted = with_experts(plain, random_expert)
    compiled = torch.compile(model, backend="eager") if part == "whole" else model
    if part == "layer":
        model.layers[1] = torch.compile(model.layers[1], backend="eager")
    base = compiled(X)  # traced without experts
    attached = with_experts(compiled, random_expert)
    assert attached.base_digest == wanted.base_digest
    for choice in CHOICES:
        with attached.use(choice), wanted.use(choice):
            torch.testing.assert_close(compiled(X), plain(X))
    attached.detach()
    assert torch.equal(compiled(X), base)


@pytest.mark.slow
def test_gradients_through_a_compiled_model(model, random_expert):
    parameters = with_experts(model, random_expert).learn("new")
    grads = []
    for forward in (model, torch.compile(model, backend="aot_eager")):
        forward(X).square().sum().backward()
        grads.append([z.grad for z in parameters])
        for z in parameters:
            z.grad = None
    torch.testing.assert_close(*grads)


def test_hooks_of_a_linear_run_while_experts_are_attached(model, random_expert):
    seen: list[str] = []
    linear = model.layers[0].up
    before = linear.register_forward_pre_hook(lambda module, args: seen.append("pre"))
    linear.register_forward_hook(
        lambda module, args, kwargs, y: seen.append("post") or 2 * y, with_kwargs=True
    )
    hooked = model(X)
    seen.clear()
    attached = with_experts(model, random_expert)
    torch.testing.assert_close(model(X), hooked)
    assert seen == ["pre", "post"]
    before.remove()
    model.layers[0].up.register_full_backward_hook(lambda *_: seen.append("back"))
    attached.learn("new")
    model(X).sum().backward()
    assert seen[2:] == ["post", "back"]
    attached.detach()
    model(X).sum().backward()
    assert seen[4:] == ["post", "back"]
