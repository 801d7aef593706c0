"""Gradients of attached experts where a backward pass repeats a forward pass: those without checkpointing."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError, checkpoint

from zweave.decomposition import Decomposition
from zweave.errors import ZweaveError
from zweave.io.progress import silent

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM

from zweave.integrations.transformers import Attached, attach

TOKENS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model(tiny_model) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model("llama")).train()


@pytest.fixture
def attached(model, random_expert) -> Iterator[Attached]:
    """Two experts that learn, "p" and "q", and "a" and "b" that do not, in a bank of two slots beside the base."""
    attached = attach(model, progress=silent, slots=3)
    shapes = {name: m.shape for name, m in Decomposition.open(attached.base_digest).matrices.items()}
    for seed, name in enumerate("pqab"):
        attached.load(name, random_expert(shapes, seed=seed))
    attached.learn("p")
    attached.learn("q", first_layer=1)
    yield attached


def loss_of(model: Any) -> Tensor:
    return model(TOKENS, labels=TOKENS).loss


def gradients(attached: Attached) -> dict[str, Tensor | None]:
    """Of all z, which are reset."""
    found = {}
    for name, linear in attached._linears.items():
        for expert, z in linear.z.items():
            found[f"{name} {expert}"], z.grad = z.grad, None
    return found


def assert_equal(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    assert any(grad is not None and grad.abs().max() > 0.01 for grad in wanted.values())
    for key, grad in wanted.items():
        if grad is None:
            assert found[key] is None
        else:
            torch.testing.assert_close(found[key], grad, rtol=0, atol=1e-6)


def two_experts_one_backward(model: Any, attached: Attached) -> dict[str, Tensor | None]:
    with attached.use("p"):
        first = loss_of(model)
    with attached.use("q"):
        second = loss_of(model)
    (first + second).backward()
    return gradients(attached)


def backward_behind_use(model: Any, attached: Attached) -> dict[str, Tensor | None]:
    with attached.use(["p", {"a": 0.5, "b": 0.5}]):
        loss = loss_of(model)
    loss.backward()
    return gradients(attached)


def backward_in_another_use(model: Any, attached: Attached) -> dict[str, Tensor | None]:
    loss = loss_of(model)  # under q, which was the last to learn
    with attached.use("p"):
        loss.backward()
    return gradients(attached)


def slots_taken_by_others_in_between(model: Any, attached: Attached) -> dict[str, Tensor | None]:
    with attached.use(["p", "a"]):
        loss = loss_of(model)
    with torch.no_grad():
        for weight in (0.1, 0.2, 0.3):
            with attached.use({"b": weight}):
                model(TOKENS)
    loss.backward()
    return gradients(attached)


def base_for_a_soft_prompt(model: Any, attached: Attached) -> dict[str, Tensor | None]:
    embedded = model.get_input_embeddings()(TOKENS).requires_grad_()
    with attached.use(None):
        loss = model(inputs_embeds=embedded, labels=TOKENS).loss
    with attached.use("p"):
        return {"soft prompt": torch.autograd.grad(loss, embedded)[0]}


PASSES = [
    two_experts_one_backward,
    backward_behind_use,
    backward_in_another_use,
    slots_taken_by_others_in_between,
    base_for_a_soft_prompt,
]


@pytest.mark.parametrize("train", PASSES, ids=lambda function: function.__name__)
def test_gradients_are_those_without_checkpointing(train, model, attached):
    wanted = train(model, attached)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_equal(train(model, attached), wanted)


def test_a_use_inside_the_checkpointed_function_counts(model, attached):
    def both(tokens: Tensor) -> Tensor:
        with attached.use("p"):
            first = model(tokens, labels=tokens).loss
        with attached.use("q"):
            return first + model(tokens, labels=tokens).loss

    both(TOKENS).backward()
    wanted = gradients(attached)
    with attached.use("a"):
        checkpoint(both, TOKENS, use_reentrant=False).backward()
    assert_equal(gradients(attached), wanted)


def test_a_graph_holds_its_slots_until_it_is_gone(model, attached):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with attached.use(["p", "a"]):
        loss = loss_of(model)
    with attached.use("b"), pytest.raises(ZweaveError, match="slots are in use"), attached.use({"b": 0.5}):
        pass
    del loss
    gc.collect()
    with attached.use("b"), attached.use({"b": 0.5}):
        pass


def test_checkpoints_that_forget_are_refused(model, attached):
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with attached.use("p"):
        loss = loss_of(model)
        with pytest.raises(ZweaveError, match="use_reentrant=False only"):
            loss.backward()


@pytest.mark.parametrize("end", ["freeze", "unload"])
def test_an_expert_that_learns_no_longer_is_named(end, model, attached):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with attached.use("p"):
        loss = loss_of(model)
    getattr(attached, end)("p")
    with pytest.raises(ZweaveError, match="'p' was frozen or unloaded between"):
        loss.backward()


@pytest.mark.parametrize("choice", ["p", "a"], ids=["learns", "is served"])
def test_a_backward_pass_after_detach_is_not_the_base_models(choice, model, attached):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    embedded = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    with attached.use(choice):
        loss = model(inputs_embeds=embedded, labels=TOKENS).loss
    attached.detach()
    with pytest.raises(CheckpointError):
        loss.backward()
