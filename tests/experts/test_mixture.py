"""Mixtures: what a request may say, and z = sum_k alpha_k z_k."""

import math

import pytest
import torch

from zweave.errors import ZweaveError
from zweave.experts import Expert, Mixture
from zweave.experts.mixture import check_name, check_same_kind, mix_experts
from zweave.text import PromptTemplate

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def test_base_is_no_mixture():
    assert Mixture.parse(None) is None
    assert Mixture.parse("base") is None


def test_a_name_is_a_mixture_of_one():
    assert Mixture.parse("a") == Mixture.parse({"a": 1.0}) == Mixture.parse({"a": 1})
    assert Mixture.parse("a").names == ("a",)
    assert Mixture.parse(Mixture.parse("a")) == Mixture.parse("a")


def test_order_does_not_matter():
    a, b = Mixture.parse({"a": 0.8, "b": [0.1, -0.0]}), Mixture.parse({"b": (0.1, 0), "a": 0.8})
    assert a == b and hash(a) == hash(b) and a.names == ("a", "b")
    assert a.weights(2) == ((0.8, 0.8), (0.1, 0.0))


@pytest.mark.parametrize("count", [1, 3])
def test_per_layer_weights_fit_the_model(count):
    with pytest.raises(ZweaveError, match=f"gives 'a' {count} weights, and the model has 2 layers"):
        Mixture.parse({"a": [0.5] * count}).weights(2)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "empty"),
        ("", "cannot be an expert's name"),
        ("auto", "needs a dispatcher"),
        ({"base": 1.0}, "reserved"),
        ({"a": math.nan}, "finite number, not nan"),
        ({"a": math.inf}, "finite number"),
        ({"a": [0.1, -math.inf]}, "finite number"),
        ({"a": 10**400}, "finite number, not 1000"),
        ({"a": "1"}, "finite number"),
        ({"a": None}, "finite number"),
        ({"a": True}, "finite number"),
        ({"a": []}, "empty list"),
        ({"a": [[1.0]]}, "finite number"),
        ({1: 0.5}, "must be a string"),
        ({"a b": 0.5}, "cannot be an expert's name"),
        ({"a\n": 0.5}, "cannot be an expert's name"),
        ("x" * 256, "cannot be an expert's name"),
        (7, "a name, a mapping"),
        (["a"], "a name, a mapping"),
    ],
    ids=str,
)
def test_wrong_choices_are_refused_in_one_line(choice, message):
    with pytest.raises(ZweaveError, match=message) as raised:
        Mixture.parse(choice)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


def test_the_same_name_twice_is_refused():
    with pytest.raises(ZweaveError, match="'a' twice"):
        Mixture((("a", 0.5), ("a", 0.5)))


@pytest.mark.parametrize(
    "name", ["a", "sst2-after_prompt.v2", "team/expert", "./experts/a.safetensors", "Base"]
)
def test_names(name):
    assert check_name(name) == name


def test_mix_is_the_weighted_sum_layer_by_layer():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        Expert(z={Q: torch.rand(199, generator=generator), UP: torch.rand(63, generator=generator)})
        for _ in "ab"
    )
    mixed = mix_experts([a, b], [[0.8, 0.3], [0.2, -1.5]])
    for module, alphas in ((Q, (0.8, 0.2)), (UP, (0.3, -1.5))):
        expected = alphas[0] * a.z[module].double() + alphas[1] * b.z[module].double()
        torch.testing.assert_close(mixed.z[module], expected.float(), rtol=0, atol=0)


def test_one_expert_at_weight_one_is_itself():
    a = Expert(z={Q: torch.rand(199)}, scope="after_prompt", renormalise=True)
    assert mix_experts([a], [[1.0, 1.0]]).digest == a.digest


def test_a_mixture_keeps_the_words_that_all_its_experts_have():
    def mixed(*templates):
        experts = [Expert(z={Q: torch.ones(3)}, prompt_template=template) for template in templates]
        return mix_experts(experts, [[0.5]] * len(experts)).prompt_template

    one, other = PromptTemplate("a {text}"), PromptTemplate("b {text}")
    assert mixed(one, PromptTemplate("a {text}")) == one
    assert [mixed(one, other), mixed(one, None), mixed(None, None)] == [None] * 3


def test_a_matrix_that_only_some_adapt_counts_as_ones_for_the_others():
    a, b = Expert(z={Q: torch.full((3,), 3.0)}), Expert(z={UP: torch.full((2,), 5.0)})
    mixed = mix_experts([a, b], [[0.5, 0.5], [0.25, 0.25]])
    assert mixed.z[Q].tolist() == [0.5 * 3 + 0.25] * 3
    assert mixed.z[UP].tolist() == [0.5 + 0.25 * 5] * 2


def test_a_matrix_that_none_adapts_stays_the_bases():
    a = Expert(z={Q: torch.ones(3)})
    assert list(mix_experts([a, a], [[0.1] * 2, [0.1] * 2]).z) == [Q]


def test_overflow_and_ranks_that_disagree_are_refused():
    a, b = Expert(z={Q: torch.full((3,), 2.0)}), Expert(z={Q: torch.ones(4)})
    with pytest.raises(ZweaveError, match=f"{Q} overflows"):
        mix_experts([a], [[3e38]])
    with pytest.raises(ZweaveError, match=f"{Q} has 3 and 4 values"):
        mix_experts([a, b], [[0.5], [0.5]])


def test_experts_that_disagree_are_not_mixed():
    check_same_kind([("a", "always", True), ("b", "always", True)])
    with pytest.raises(ZweaveError, match="the scope of the one is 'always', of the other 'after_prompt'"):
        check_same_kind([("a", "always", False), ("b", "after_prompt", False)])
    with pytest.raises(ZweaveError, match="'b' asks for renormalisation, 'a' does not"):
        check_same_kind([("a", "always", False), ("b", "always", True)])
