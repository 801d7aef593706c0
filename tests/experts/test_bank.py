"""The bank: rows are what the formula says, slots are shared, pinned and given back."""

import os
import threading

import pytest
import torch

from zweave.errors import ZweaveError
from zweave.experts import Bank, Expert, Mixture
from zweave.experts.byte_cache import ByteCache
from zweave.experts.expert_entry import ExpertEntry

Q0, UP0, Q1 = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.self_attn.q_proj",
)
RANKS = {Q0: 63, UP0: 199, Q1: 63}
SIGMAS = {
    module: torch.rand(rank, generator=torch.Generator().manual_seed(rank)).sort(descending=True).values
    + 0.01
    for module, rank in RANKS.items()
}


def expert(seed, modules=RANKS, **fields):
    generator = torch.Generator().manual_seed(seed)
    z = {module: 1 + 0.1 * torch.randn(RANKS[module], generator=generator) for module in modules}
    return Expert(z=z, **fields)


def bank(slots=4, **experts):
    made = Bank(SIGMAS, slots)
    for name, held in experts.items():
        made.load(name, held)
    return made


def rows(made, slot):
    return {module: made.tables.columns(module)[slot] for module in RANKS}


def test_row_0_is_the_base_and_unused_rows_are_poisoned():
    made = bank(slots=3)
    assert made.acquire(None) == 0
    made.release(0)
    for module, row in rows(made, 0).items():
        torch.testing.assert_close(row, SIGMAS[module], rtol=0, atol=0)
    assert made.tables.scale.shape == (3, sum(RANKS.values())) and made.tables.scale.dtype == torch.float32
    assert made.tables.scale[1:].isnan().all()


def test_columns_are_views_in_layer_order():
    made = bank()
    assert made.tables.columns(UP0).shape == (4, 199)
    assert made.tables.columns(UP0).stride() == (325, 1)
    assert made.tables.columns(UP0).data_ptr() == made.tables.scale.data_ptr() + 4 * 63


def test_row_of_an_expert_is_sigma_times_z():
    a = expert(1)
    made = bank(a=a)
    for module, row in rows(made, made.acquire(Mixture.parse("a"))).items():
        torch.testing.assert_close(row, SIGMAS[module] * a.z[module], rtol=0, atol=0)


def test_matrices_that_are_not_adapted_are_the_bases():
    made = bank(a=expert(1, modules=[UP0]))
    row = rows(made, made.acquire(Mixture.parse({"a": 0.3})))
    torch.testing.assert_close(row[Q0], SIGMAS[Q0], rtol=0, atol=0)
    assert not torch.equal(row[UP0], SIGMAS[UP0])


@pytest.mark.parametrize("renormalise", [False, True], ids=["plain", "renormalised"])
def test_row_of_a_mixture(renormalise):
    a, b = expert(1, renormalise=renormalise), expert(2, modules=[UP0, Q1], renormalise=renormalise)
    made = bank(a=a, b=b)
    alphas = {"a": [0.8, 0.1], "b": [0.3, 0.4]}
    row = rows(made, made.acquire(Mixture.parse(alphas)))
    for module, sigma in SIGMAS.items():
        layer = int(module.split(".")[2])
        ones = torch.ones(RANKS[module])
        parts = [
            (alphas[name][layer], held.z.get(module, ones).double()) for name, held in (("a", a), ("b", b))
        ]
        expected = sigma.double() * sum(alpha * z for alpha, z in parts)
        if renormalise:
            expected *= sigma.double().sum() / sum(alpha * (sigma.double() * z).sum() for alpha, z in parts)
        torch.testing.assert_close(row[module], expected.float(), rtol=3e-7, atol=0)


def test_renormalisation_keeps_the_sum_of_the_singular_values():
    made = bank(a=expert(1, renormalise=True))
    for module, row in rows(made, made.acquire(Mixture.parse({"a": 0.2}))).items():
        torch.testing.assert_close(row.sum(), SIGMAS[module].sum(), rtol=1e-5, atol=0)


def test_renormalisation_by_nothing_is_refused_and_costs_no_slot():
    a, minus = expert(1, renormalise=True), expert(2, renormalise=True)
    made = bank(slots=2, a=a, b=minus)
    with pytest.raises(ZweaveError, match="cannot be renormalised"):
        made.acquire(Mixture.parse({"a": 0.0}))
    assert made.acquire(Mixture.parse("a")) == 1


def test_a_zero_matrix_can_be_renormalised():
    made = Bank({Q0: torch.zeros(63)}, 2)
    made.load("a", expert(1, modules=[Q0], renormalise=True))
    assert (made.tables.scale[made.acquire(Mixture.parse("a"))] == 0).all()


def test_overflow_is_refused():
    made = Bank({Q0: torch.full((63,), 1e20)}, 2)
    made.load("a", Expert(z={Q0: torch.full((63,), 1e20)}))
    with pytest.raises(ZweaveError, match="overflow"):
        made.acquire(Mixture.parse("a"))


def test_digest_is_of_the_content():
    made = bank(a=expert(1), same=expert(1), b=expert(2))
    digest = {
        text: made.resolve(Mixture.parse(choice)).digest
        for text, choice in {
            "a": "a",
            "one": {"a": 1.0},
            "layers": {"a": [1.0, 1.0]},
            "same": "same",
            "halves": {"a": 0.5, "same": 0.5},
            "b": "b",
            "half": {"a": 0.5},
            "ab": {"a": 0.5, "b": 0.25},
            "ba": {"b": [0.25, 0.25], "same": 0.5},
            "swapped": {"a": 0.25, "b": 0.5},
        }.items()
    }
    assert digest["a"] == expert(1).digest
    assert len({digest[text] for text in ("a", "one", "layers", "same", "halves")}) == 1
    assert digest["ab"] == digest["ba"]
    assert len(set(digest.values())) == 5
    assert made.resolve(None).digest == "base"


def test_equal_mixtures_share_a_row():
    made = bank(slots=2, a=expert(1), same=expert(1))
    slots = [made.acquire(Mixture.parse(choice)) for choice in ("a", {"same": 1}, {"a": 0.5, "same": 0.5})]
    assert slots == [1, 1, 1]


def test_scope_is_the_experts():
    made = bank(
        a=expert(1), b=expert(2, scope="after_prompt"), c=expert(3, scope="after_prompt", first_layer=0)
    )
    assert made.resolve(None).scope == "always" and made.resolve(Mixture.parse("a")).scope == "always"
    assert made.resolve(Mixture.parse({"b": 0.5, "c": 0.5})).scope == "after_prompt"
    with pytest.raises(ZweaveError, match="cannot be mixed"):
        made.resolve(Mixture.parse({"a": 0.5, "b": 0.5}))


def test_first_layer_is_the_lowest():
    made = bank(a=expert(1, modules=[Q1], first_layer=1), b=expert(2))
    assert made.resolve(Mixture.parse("a")).first_layer == 1
    assert made.resolve(Mixture.parse({"a": 0.5, "b": 0.5})).first_layer == 0
    assert made.resolve(None).first_layer == 2


def test_a_row_stays_until_its_slot_is_wanted(tmp_path):
    path = tmp_path / "a.safetensors"
    expert(1).save(path)
    made = bank(slots=3, b=expert(2), c=expert(3))
    made.load("a", path)
    slot = made.acquire(Mixture.parse("a"))
    made.release(slot)
    path.unlink()
    assert made.acquire(Mixture.parse("a")) == slot, "cached: the file is not needed"
    made.release(slot)
    for name in ("b", "c"):
        made.release(made.acquire(Mixture.parse(name)))
    with pytest.raises(ZweaveError, match="no such file"):
        made.acquire(Mixture.parse("a"))
    assert made.acquire(Mixture.parse("b")) and made.acquire(Mixture.parse("c"))


def test_changed_file_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    expert(1).save(path)
    made = bank()
    made.load("a", path)
    expert(2).save(path)
    with pytest.raises(
        ZweaveError, match=r"a\.safetensors changed since it was loaded as 'a': load it again"
    ):
        made.acquire(Mixture.parse("a"))
    made.load("a", path)
    torch.testing.assert_close(
        made.tables.columns(Q0)[made.acquire(Mixture.parse("a"))],
        SIGMAS[Q0] * expert(2).z[Q0],
        rtol=0,
        atol=0,
    )


def test_expert_objects_are_copied():
    a = expert(1)
    made = bank(a=a)
    a.z[Q0].fill_(7)
    torch.testing.assert_close(
        made.tables.columns(Q0)[made.acquire(Mixture.parse("a"))],
        SIGMAS[Q0] * expert(1).z[Q0],
        rtol=0,
        atol=0,
    )


@pytest.mark.slow
def test_ten_thousand_experts_cost_no_memory_but_their_names(tmp_path):
    path = tmp_path / "a.safetensors"
    expert(1).save(path)
    made = bank()
    for index in range(10_000):
        made.load(f"e{index}", path)
    assert len(made.experts()) == 10_000
    assert all(made.registered(name).expert is None for name in made.experts())
    assert made.acquire(Mixture.parse("e9999")) == made.acquire(Mixture.parse("e0"))


def test_unloading_while_in_use():
    made = bank(slots=2, a=expert(1))
    bound = made.resolve(Mixture.parse("a"))
    slot = made.acquire(Mixture.parse("a"))
    made.unload("a")
    with pytest.raises(ZweaveError, match="there is no expert 'a': none is loaded"):
        made.acquire(Mixture.parse("a"))
    with pytest.raises(ZweaveError):
        made.unload("a")
    torch.testing.assert_close(made.tables.columns(Q0)[slot], SIGMAS[Q0] * expert(1).z[Q0], rtol=0, atol=0)
    made.release(slot)
    assert made.acquire(bound) == slot, "what was bound before stays usable"


def test_reloading_a_name_changes_it_for_new_requests_only():
    made = bank(a=expert(1))
    bound = made.resolve(Mixture.parse("a"))
    old = made.acquire(bound)
    made.load("a", expert(2))
    new = made.acquire(Mixture.parse("a"))
    assert new != old and made.acquire(bound) == old
    assert made.experts() == ["a"]
    torch.testing.assert_close(made.tables.columns(Q0)[new], SIGMAS[Q0] * expert(2).z[Q0], rtol=0, atol=0)


def test_unknown_names_come_with_suggestions():
    made = bank(sentiment=expert(1), sum=expert(2))
    with pytest.raises(ZweaveError, match="no expert 'sentimnt': did you mean 'sentiment'"):
        made.resolve(Mixture.parse("sentimnt"))
    with pytest.raises(ZweaveError, match="no expert 'xyz': loaded: sentiment, sum"):
        made.resolve(Mixture.parse("xyz"))


def test_described_experts_are_in_no_suggestion():
    made = bank(**{f"described/{index}": expert(1) for index in range(9)})
    with pytest.raises(ZweaveError, match="no expert 'described/x': none is loaded"):
        made.resolve(Mixture.parse("described/x"))
    made.load("sum", expert(2))
    with pytest.raises(ZweaveError, match=r"no expert 'described/x': loaded: sum$"):
        made.resolve(Mixture.parse("described/x"))


def test_experts_of_another_model_are_refused_and_not_registered(tmp_path):
    path = tmp_path / "a.safetensors"
    expert(1, base_digest="a" * 64).save(path)
    made = Bank(SIGMAS, 2, base_digest="b" * 64)
    with pytest.raises(ZweaveError, match=r"a\.safetensors: the expert was trained for other weights"):
        made.load("a", path)
    with pytest.raises(ZweaveError, match="rank 63"):
        made.load("a", Expert(z={Q0: torch.ones(64)}))
    with pytest.raises(ZweaveError, match="reserved"):
        made.load("auto", expert(1))
    assert made.experts() == []


def test_a_bank_needs_two_slots():
    with pytest.raises(ZweaveError, match="at least 2 slots"):
        Bank(SIGMAS, 1)


def test_loading_while_others_acquire():
    made = bank(slots=8, a=expert(1), b=expert(2))
    failures = []

    def hammer(name, seed):
        try:
            for turn in range(30):
                made.load(f"{name}{turn % 3}", expert(seed))
                slot = made.acquire(Mixture.parse({name: 0.5, f"{name}{turn % 3}": 0.5}))
                expected = SIGMAS[Q0] * expert(seed).z[Q0]
                torch.testing.assert_close(made.tables.columns(Q0)[slot], expected, rtol=1e-6, atol=0)
                made.release(slot)
                made.unload(f"{name}{turn % 3}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=args) for args in (("a", 1), ("b", 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_prepared_rows_need_no_z(tmp_path, monkeypatch):
    """Also those of a file, as long as it is the same."""
    path = tmp_path / "a.safetensors"
    expert(1).save(path, half=True)
    made = bank(slots=2, b=expert(2))
    made.load("a", path)
    wanted = SIGMAS[Q0] * Expert.load(path).z[Q0]
    with monkeypatch.context() as patch:
        patch.setattr(ExpertEntry, "read_z", lambda entry: pytest.fail("read"))
        for name in "aba":
            slot = made.acquire(Mixture.parse(name))
            made.release(slot)
    torch.testing.assert_close(made.tables.columns(Q0)[slot], wanted, rtol=0, atol=0)
    made.release(made.acquire(Mixture.parse("b")))
    os.utime(path, ns=(0, 0))
    made._prepared = ByteCache(0, 1)
    assert made.acquire(Mixture.parse("a")) == slot, "the same bytes under another time"
    torch.testing.assert_close(made.tables.columns(Q0)[slot], wanted, rtol=0, atol=0)


@pytest.mark.parametrize(("rows_of_memory", "count"), [(2, 9), (9, 2)])
def test_prepared_rows_keep_to_their_memory_and_number(rows_of_memory, count):
    rows = bank().tables.rows_of({})
    prepared = ByteCache(rows_of_memory * rows.nbytes, count)
    for digest in "abb":
        prepared.put(digest, rows)
    assert prepared.get("a") is rows
    prepared.put("c", rows)
    assert [prepared.get(digest) is rows for digest in "abc"] == [True, False, True]


def test_first_layers_follow_loads_and_unloads():
    z = {"model.layers.3.self_attn.q_proj": torch.ones(4)}
    made = Bank(
        {module.replace("3", str(layer)): torch.ones(4) for module in z for layer in range(5)}, slots=2
    )
    late = [Expert(z, first_layer=layer) for layer in (1, 3)]
    for name, one in zip("abc", (late[0], late[1], late[1]), strict=True):
        made.load(name, one)
    assert made.first_layers == (1, 3)
    made.load("a", late[1])
    assert made.first_layers == (3,)
    for name in "abc":
        made.unload(name)
    assert made.first_layers == ()
