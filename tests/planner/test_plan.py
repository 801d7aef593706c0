"""Plans: what they keep within a budget, which modes they open, what a batch costs, and how modes are chosen."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from zweave import ZweaveError
from zweave.engine import EngineConfig
from zweave.experts import Bank, Expert, Mixture
from zweave.experts.certificate import certify
from zweave.kernels import LinearMode, dequantize, pack, quantize
from zweave.planner import MatrixPlan, make_plan, plan_for
from zweave.planner.batch_planner import BatchPlanner, count_by_slot
from zweave.planner.cost_model import CostModel, cost_model, measure
from zweave.planner.delta_formats import STATED_ERROR, IntegerFormat
from zweave.planner.grid_plan import grid_plan, grids_plan, refit_plan
from zweave.planner.plan import memory, read_bytes
from zweave.planner.planner import break_even_rank

SHAPES = {
    "model.layers.0.self_attn.q_proj": (576, 576),
    "model.layers.0.self_attn.k_proj": (192, 576),
    "model.layers.0.mlp.up_proj": (1536, 576),
}
Q, K, UP = SHAPES
COSTS = CostModel(
    3e10, 4e11, integer_ops_per_second=8e11, grid_ops_per_second=3e11, call_seconds=1e-6, value_bytes=2
)


def test_all_modes_are_open_without_a_budget() -> None:
    plan = make_plan(SHAPES)
    assert all(matrix.dense and matrix.factored and matrix.delta_rank for matrix in plan.values())
    assert plan[Q].delta_rank == 288 and plan[K].delta_rank == 48
    assert [plan[Q].mode_of(n) for n in (0, 1, 288, 289, 576)] == [
        LinearMode.DENSE, LinearMode.DELTA, LinearMode.DELTA, LinearMode.FACTORED, LinearMode.FACTORED
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(576, 576), (192, 576), (4096, 14336), (16, 16), (1, 50)])
def test_a_delta_never_costs_more_than_the_factors(shape: tuple[int, int]) -> None:
    M, N = shape
    kept = break_even_rank(shape)
    assert kept % 16 == 0 and M * N + kept * (M + N) <= min(shape) * (M + N)


def test_memory_is_kept() -> None:
    everything = memory(make_plan(SHAPES), 2)
    previous = everything
    for budget in range(everything, 0, -everything // 40):
        try:
            plan = make_plan(SHAPES, max_memory=budget)
        except ZweaveError as error:
            assert "allow more" in str(error) and len(str(error).splitlines()) == 1
            # W and an int4 panel or sixteenth.
            assert budget < sum(2 * M * N for M, N in SHAPES.values()) * 1.05
            break
        assert memory(plan, 2) <= budget
        assert memory(plan, 2) <= previous
        previous = memory(plan, 2)
    else:
        pytest.fail("no budget was too small")


def test_w_goes_first_where_it_saves_least() -> None:
    plan = make_plan(SHAPES, max_memory=memory(make_plan(SHAPES), 2) - 1)
    assert not plan[K].dense or not plan[UP].dense
    assert plan[Q].dense


def test_a_gpu_keeps_all_forms_and_takes_one_mode_a_step() -> None:
    plan = make_plan(SHAPES, "gpu")
    assert {m.mode_of(0) for m in plan.values()} == {LinearMode.DENSE}
    assert {m.mode_of(m.rank // 8) for m in plan.values()} == {LinearMode.DELTA}
    assert {m.mode_of(m.rank) for m in plan.values()} == {LinearMode.FACTORED}
    factored = make_plan(SHAPES, "gpu", batch_invariant=True)
    assert {m.mode_of(0) for m in factored.values()} == {LinearMode.FACTORED}
    assert make_plan(SHAPES, "gpu", max_memory=memory(plan, 2) - 1) == factored
    leading = make_plan(SHAPES, "gpu", max_memory=memory(factored, 2) - 1)
    assert {(m.dense, m.factored) for m in leading.values()} == {(True, False)}
    assert all(0 < m.delta_rank < m.rank for m in leading.values())
    for batch_invariant in (False, True):
        with pytest.raises(ZweaveError, match="the least that would do is"):
            make_plan(SHAPES, "gpu", max_memory=1000, batch_invariant=batch_invariant)


def test_a_gpu_takes_integers_where_the_error_allows_them() -> None:
    plan = make_plan(SHAPES, "gpu")
    integers = {
        module: MatrixPlan(s, True, min(s), factored=False, format="int8") for module, s in SHAPES.items()
    }
    assert memory(integers, 2) < memory(plan, 2)
    assert make_plan(SHAPES, "gpu", max_error=0.5) == plan
    assert make_plan(SHAPES, "gpu", max_memory=memory(integers, 2), max_error=0.0121) == integers
    factored = make_plan(SHAPES, "gpu", max_memory=memory(integers, 2))
    assert {(m.dense, m.format) for m in factored.values()} == {(False, None)}
    little = memory(factored, 2) - 1
    kept = {error: make_plan(SHAPES, "gpu", max_memory=little, max_error=error) for error in (0.0, 0.0121)}
    assert {m.format for m in kept[0.0].values()} == {None} and {m.format for m in kept[0.0121].values()} == {
        "int8"
    }
    assert all(kept[0.0121][module].delta_rank > matrix.delta_rank for module, matrix in kept[0.0].items())
    assert make_plan(SHAPES, "gpu", max_memory=little + 1, max_error=0.5, batch_invariant=True) == factored


def test_w_stays_on_its_grid_and_experts_are_int4_beside_it() -> None:
    given = grids_plan(SHAPES, {Q: "Q4_1", UP: "Q8_0"})
    plan = make_plan(SHAPES, given=given)
    assert plan[Q] == MatrixPlan((576, 576), True, 576, False, "int4", "Q4_1", int8_leading=80)
    assert plan[UP] == MatrixPlan((1536, 576), True, 576, False, "int4", "Q8_0", int8_leading=80)
    assert plan[K] == make_plan(SHAPES)[K]
    assert [plan[Q].mode_of(n) for n in (0, 1, 576)] == [LinearMode.DENSE, LinearMode.DELTA, LinearMode.DELTA]
    W, U, V = 576 * 576 * 5 // 8, 576 * (80 + 4 + 496 * 9 // 16), 80 * (576 + 4) + 496 * 576 * 9 // 16
    assert plan[Q].resident(2) == {"W": W, "U": U, "V": V}
    assert [plan[Q].read(mode, 2) for mode in (LinearMode.DENSE, LinearMode.DELTA)] == [W, W + U + V]
    assert [plan[Q].format_of(support) for support in (80, 81)] == ["int8", "int4"]
    assert grid_plan((16, 64), "Q4_0") == MatrixPlan((16, 64), True, 16, False, "int8", "Q4_0")
    assert make_plan(SHAPES, max_memory=memory(plan, 2), given=given) == plan
    with pytest.raises(ZweaveError, match=r"the least that would do is .*: allow more"):
        make_plan(SHAPES, max_memory=memory(plan, 2) - 1, given=given)


def test_refit_factors_are_all_that_is_kept() -> None:
    shapes = {Q: (576, 576), UP: (1536, 576), K: (192, 576)}
    plan = make_plan(shapes, given=refit_plan(shapes, dict.fromkeys(shapes, ("Q8_0", "Q4_0"))))
    assert plan[UP] == MatrixPlan((1536, 576), factor_grids=("Q8_0", "Q4_0"))
    assert plan[UP].resident(2) == {"W": 0, "U": 1536 * 576 * 17 // 16, "V": 576 * 576 * 9 // 16}
    assert plan[K].resident(4) == {"W": 0, "U": 192 * 192 * 17 // 16, "V": 192 * 576 * 9 // 16}
    assert {plan[Q].mode_of(n) for n in (0, 1, 576)} == {LinearMode.FACTORED}
    assert read_bytes(plan, 2, is_base=True) == read_bytes(plan, 2, is_base=False) == memory(plan, 2)


def test_what_a_token_reads() -> None:
    assert read_bytes(make_plan({UP: (1536, 576)}), 2, is_base=True) == 2 * 1536 * 576
    assert read_bytes(make_plan({UP: (1536, 576)}), 2, is_base=False) == 2 * 576 * (1536 + 576)
    matrix = make_plan({UP: (1536, 576)})[UP]
    assert matrix.read(LinearMode.DELTA, 2) == 2 * (1536 * 576 + 144 * (1536 + 576))
    assert read_bytes({UP: MatrixPlan((32, 64), True, 16, False)}, 2, is_base=False) is None


def test_impossible_plans_are_refused() -> None:
    for wrong in (
        {"dense": False, "factored": False},
        {"dense": False, "delta_rank": 3},
        {"dense": True, "delta_rank": 9},
        {"dense": True, "delta_rank": 8, "format": "int8"},
        {"dense": True, "factored": False, "format": "int4"},
        {"grid": "Q4_1"},
        {"dense": True, "factored": False, "delta_rank": 8, "format": "int4", "int8_leading": 8},
        {"dense": True, "factored": False, "delta_rank": 8, "format": "int8", "int8_leading": 4},
        {"dense": True, "factor_grids": ("Q8_0", "Q4_0")},
    ):
        with pytest.raises(ValueError):
            MatrixPlan((8, 20), **wrong)


def test_few_leading_components_refuse_what_they_cannot_do() -> None:
    matrix = MatrixPlan((32, 64), dense=True, delta_rank=16, factored=False)
    assert matrix.mode_of(16) == LinearMode.DELTA and matrix.mode_of(17) is None


def factors_alone() -> int:
    return sum(2 * min(shape) * sum(shape) for shape in SHAPES.values())


class TestIntegers:
    def test_only_where_experts_without_limits_find_no_room_otherwise(self) -> None:
        assert all(m.format is None for m in make_plan(SHAPES, max_memory=factors_alone()).values())
        plan = make_plan(SHAPES, max_memory=factors_alone() - 1)
        assert {module for module, m in plan.items() if m.format} == {Q} and plan[Q].format == "int4"
        assert [plan[Q].mode_of(n) for n in (0, 1, 576)] == [
            LinearMode.DENSE,
            LinearMode.DELTA,
            LinearMode.DELTA,
        ]
        assert all(m.mode_of(m.rank) is not None for m in plan.values())

    def test_wherever_cheaper_within_the_error(self) -> None:
        budget = factors_alone() * 11 // 10
        exact = make_plan(SHAPES, max_memory=budget)
        close = make_plan(SHAPES, max_memory=budget, max_error=0.0121)
        anyhow = make_plan(SHAPES, max_memory=budget, max_error=0.1)
        assert {m.format for m in exact.values()} == {None}
        assert "int8" in {m.format for m in close.values()} <= {None, "int8"}
        assert "int4" in {m.format for m in anyhow.values()}
        for plan in (exact, close, anyhow):
            assert memory(plan, 2) <= budget and all(m.mode_of(m.rank) is not None for m in plan.values())

        def seconds(plan: dict[str, MatrixPlan]) -> float:
            modes = [(m, m.mode_of(support)) for m in plan.values() for support in (0, m.rank)]
            return sum(COSTS.seconds(mode, m, 16) for m, mode in modes)

        assert seconds(anyhow) <= seconds(close) < seconds(exact)

    def test_the_least_that_would_do_is_named_and_does(self) -> None:
        with pytest.raises(ZweaveError, match="least that would do") as error:
            make_plan(SHAPES, max_memory=1 << 20)
        least = float(str(error.value).split(" is ")[1].split(":")[0])
        plan = make_plan(SHAPES, max_memory=int(least * (1 << 20)))
        assert {m.format for m in plan.values()} == {"int4"}

    def test_bytes_are_those_of_the_packed_weights(self) -> None:
        for format in ("int8", "int4"):
            matrix = MatrixPlan((576, 576), dense=True, delta_rank=576, factored=False, format=format)
            one = pack(quantize(torch.randn(576, 576), format))
            kept = 2 * (one.data.nbytes + one.scale.nbytes)
            assert matrix.nbytes(2) == 2 * 576 * 576 + kept

    def test_cost(self) -> None:
        weights = 2 * 576 * 576
        int8, int4 = (MatrixPlan((576, 576), True, 576, False, format) for format in ("int8", "int4"))
        found = COSTS.seconds(LinearMode.DELTA, int8, 1) - COSTS.seconds(LinearMode.DENSE, int8, 1)
        assert found == pytest.approx(weights / 3e10)
        found = COSTS.seconds(LinearMode.DELTA, int4, 512) - COSTS.seconds(LinearMode.DENSE, int4, 512)
        assert found == pytest.approx(2 * weights * 512 / 8e11)

    def test_an_expert_that_would_lose_more_than_allowed_is_refused(self) -> None:
        sigmas = {Q: torch.linspace(2, 1, 576)}
        plan = {Q: MatrixPlan((576, 576), dense=True, delta_rank=576, factored=False, format="int4")}
        for max_error, change, refused in ((0.01, 0.01, False), (0.01, 0.1, True), (0.0, 0.1, False)):
            bank = Bank(sigmas, slots=3, plan=plan, max_error=max_error)
            bank.load("one", Expert(z={Q: torch.full((576,), 1 + change)}))
            if refused:
                with pytest.raises(ZweaveError, match="int4 factors may lose"):
                    bank.acquire(bank.resolve(Mixture.parse("one")))
            else:
                bank.acquire(bank.resolve(Mixture.parse("one")))


class TestCostModel:
    def test_streams_or_multiplies(self) -> None:
        weights, plain = 576 * 576, MatrixPlan((576, 576), dense=True, delta_rank=72)
        assert COSTS.seconds(LinearMode.DENSE, plain, 1) == pytest.approx(2 * weights / 3e10)
        assert COSTS.seconds(LinearMode.DENSE, plain, 512) == pytest.approx(2 * weights * 512 / 4e11)
        assert COSTS.seconds(LinearMode.FACTORED, plain, 1) == pytest.approx(2 * 2 * weights / 3e10)
        assert COSTS.seconds(LinearMode.DELTA, plain, 1) == pytest.approx(1.25 * 2 * weights / 3e10)
        assert COSTS.seconds(LinearMode.DENSE, plain, 0) == 0
        refit = MatrixPlan((576, 576), factor_grids=("Q8_0", "Q4_0"))
        on_grid = MatrixPlan((576, 576), dense=True, grid="Q4_1")
        assert COSTS.seconds(LinearMode.DENSE, on_grid, 1) == pytest.approx(0.625 * weights / 3e10)
        assert COSTS.seconds(LinearMode.DENSE, on_grid, 512) == pytest.approx(2 * weights * 512 / 3e11)
        found = COSTS.seconds(LinearMode.FACTORED, refit, 1)
        assert found == pytest.approx((1.0625 + 0.5625) * weights / 3e10)

    def test_measures(self) -> None:
        found = measure(torch.float32, size=64, bytes_to_rotate=1 << 16)
        assert min(asdict(found).values()) > 0

    def test_is_cached_and_measured_again_if_damaged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path))
        calls: list[torch.dtype] = []

        def fake(dtype: torch.dtype) -> CostModel:
            calls.append(dtype)
            return COSTS

        monkeypatch.setattr("zweave.planner.cost_model.measure", fake)
        assert cost_model(torch.bfloat16) == COSTS == cost_model(torch.bfloat16)
        assert len(calls) == 1
        (file,) = (tmp_path / "cost").iterdir()
        for damage in ("", "[]", json.dumps({"format": "zweave-cost-2", "bytes_per_second": 1})):
            file.write_text(damage)
            assert cost_model(torch.bfloat16) == COSTS
        assert len(calls) == 4
        cost_model(torch.float32)
        assert len(calls) == 5


class TestPlanFor:
    def test_weighs_the_machines_costs_under_a_limit_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "zweave.planner.planner.cost_model", lambda dtype: pytest.fail("nothing depends on costs")
        )
        assert plan_for(SHAPES, "cpu", torch.bfloat16) == make_plan(SHAPES)
        # Where integers take hours to multiply none are taken, whatever error is allowed.
        slow = replace(COSTS, integer_ops_per_second=1.0)
        monkeypatch.setattr("zweave.planner.planner.cost_model", lambda dtype: slow)
        config = EngineConfig(max_memory=factors_alone(), max_error=0.1)
        plan = plan_for(SHAPES, "cpu", config.torch_dtype, config.max_memory, config.max_error)
        assert plan == make_plan(SHAPES, max_memory=factors_alone(), max_error=0.1, costs=slow)
        assert plan != make_plan(SHAPES, max_memory=factors_alone(), max_error=0.1, costs=COSTS)


class TestBatchPlanner:
    def planner(self) -> BatchPlanner:
        """Slots: the base, one of few components, two without limits, and one that is merged."""
        modes = torch.tensor(
            [
                [
                    LinearMode.DENSE,
                    LinearMode.DELTA,
                    LinearMode.FACTORED,
                    LinearMode.FACTORED,
                    LinearMode.MERGED,
                ]
            ]
            * 3,
            dtype=torch.uint8,
        )
        return BatchPlanner(make_plan(SHAPES), modes, COSTS)

    @pytest.mark.parametrize(
        ("slots", "factored"),
        [
            ([0] * 4, False),
            ([1] * 4, False),
            ([2, 3], False),
            ([0, 2], True),
            ([0, 1, 2, 3], True),
            ([0] * 500 + [2], False),
            ([4] * 8, False),
            ([4, 2, 0], True),
        ],
        ids=str,
    )
    def test_one_way_for_all_when_it_reads_less(self, slots: list[int], factored: bool) -> None:
        assert self.planner().all_factored(torch.tensor(slots, dtype=torch.int32)) is factored

    def test_not_without_the_factors(self) -> None:
        plan = {Q: MatrixPlan((576, 576), dense=True, delta_rank=80, factored=False)}
        planner = BatchPlanner(plan, torch.tensor([[0, 1]], dtype=torch.uint8), COSTS)
        assert not planner.all_factored(torch.tensor([0, 1, 1], dtype=torch.int32))

    def test_counts(self) -> None:
        assert count_by_slot(torch.tensor([0, 3, 3, 1, 0], dtype=torch.int32)) == {1: 1, 3: 2}


def test_certificates_are_the_spectral_norm_of_what_is_dropped() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 24, generator=random, dtype=torch.float64)
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    z = (1 + 0.1 * torch.randn(24, generator=random)).float()
    (found,) = certify(Expert(z={Q: z}), {Q: sigma}, {Q: 10})
    cut = z.double().clone()
    cut[10:] = 1
    lost = torch.linalg.matrix_norm(u @ torch.diag(sigma * (z.double() - cut)) @ vt, 2)
    assert found.error == pytest.approx(float(lost / torch.linalg.matrix_norm(weight, 2)), rel=1e-10)
    assert (found.support, found.kept) == (24, 10)
    (whole,) = certify(Expert(z={Q: z}), {Q: sigma}, {Q: 24})
    assert whole.error == 0


def test_certificates_of_renormalised_experts_are_of_what_is_served() -> None:
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    z = torch.ones(24)
    z[:3] = torch.tensor([1.5, 0.75, 1.25])
    (found,) = certify(Expert(z={Q: z}, renormalise=True), {Q: sigma}, {Q: 10})
    served = z.double() * sigma.sum() / (sigma * z).sum()
    # Three components are adapted, and the factor changes all of them.
    assert (found.support, found.kept) == (24, 10)
    for part, told in ((slice(10, None), found.error), (slice(0, 10), found.change)):
        changed = (u[:, part] * (sigma * (served - 1))[part]) @ vt[part]
        assert told == pytest.approx(spectral_norm(changed) / spectral_norm(weight), rel=1e-10)


def spectral_norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


@pytest.mark.parametrize("format", STATED_ERROR)
@pytest.mark.parametrize("shape", [(96, 576), (300, 300)], ids=str)
def test_integers_lose_no_more_of_a_delta_than_stated(shape: tuple[int, int], format: IntegerFormat) -> None:
    random = torch.Generator().manual_seed(0)
    u, sigma, vt = torch.linalg.svd(torch.randn(shape, generator=random), full_matrices=False)
    rounded_u, rounded_vt = (dequantize(quantize(one.contiguous(), format)) for one in (u, vt))
    delta = torch.randn(len(sigma), generator=random)
    lost = spectral_norm((rounded_u * delta) @ rounded_vt - (u * delta) @ vt) / float(delta.abs().max())
    worst_u, worst_v = spectral_norm(rounded_u - u), spectral_norm(rounded_vt - vt)
    # Of any delta, with activations rounded as badly as they can be.
    x = 64**0.5 / 254
    bound = (1 + worst_u) * (1 + worst_v) * (1 + x) ** 2 - 1
    assert 0 < lost < bound < STATED_ERROR[format]
