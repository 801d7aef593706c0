"""Plans: what they keep within a budget, which ways they open, what a batch costs, and how ways are chosen."""

import json
from pathlib import Path

import pytest
import torch

from zweave import ZweaveError
from zweave.batch_planner import BatchPlanner, count_by_slot
from zweave.certificate import certify
from zweave.cost_model import CostModel, cost_model, measure
from zweave.expert import Expert
from zweave.kernels import Way
from zweave.plan import MatrixPlan, make_plan, memory, worthwhile_components

SHAPES = {
    "model.layers.0.self_attn.q_proj": (576, 576),
    "model.layers.0.self_attn.k_proj": (192, 576),
    "model.layers.0.mlp.up_proj": (1536, 576),
}
Q, K, UP = SHAPES
COSTS = CostModel(bytes_per_second=3e10, flops_per_second=4e11, call_seconds=1e-6, value_bytes=2)


def test_all_ways_are_open_without_a_budget() -> None:
    plan = make_plan(SHAPES)
    assert all(matrix.dense and matrix.factored and matrix.leading for matrix in plan.values())
    assert plan[Q].leading == 288 and plan[K].leading == 48
    assert [plan[Q].way(n) for n in (0, 1, 288, 289, 576)] == [
        Way.DENSE, Way.DELTA, Way.DELTA, Way.FACTORED, Way.FACTORED
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(576, 576), (192, 576), (4096, 14336), (16, 16), (1, 50)])
def test_a_delta_never_costs_more_than_the_factors(shape: tuple[int, int]) -> None:
    M, N = shape
    kept = worthwhile_components(shape)
    assert kept % 16 == 0 and M * N + kept * (M + N) <= min(shape) * (M + N)


def test_memory_is_kept() -> None:
    everything = memory(make_plan(SHAPES), 2)
    previous = everything
    for budget in range(everything, 0, -everything // 40):
        try:
            plan = make_plan(SHAPES, max_memory=budget)
        except ZweaveError as error:
            assert "allow more" in str(error) and len(str(error).splitlines()) == 1
            assert budget < sum(2 * M * N for M, N in SHAPES.values()) * 1.25
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


def test_a_gpu_goes_factored() -> None:
    plan = make_plan(SHAPES, "cuda")
    assert {matrix.way(0) for matrix in plan.values()} == {Way.FACTORED}
    with pytest.raises(ZweaveError, match="max_memory"):
        make_plan(SHAPES, "cuda", max_memory=1000)


def test_impossible_plans_are_refused() -> None:
    for wrong in (
        {"dense": False, "factored": False},
        {"dense": False, "leading": 3},
        {"dense": True, "leading": 9},
    ):
        with pytest.raises(ValueError):
            MatrixPlan((8, 20), **wrong)


def test_few_leading_components_refuse_what_they_cannot_do() -> None:
    matrix = MatrixPlan((32, 64), dense=True, leading=16, factored=False)
    assert matrix.way(16) == Way.DELTA and matrix.way(17) is None


class TestCostModel:
    def test_streams_or_multiplies(self) -> None:
        weights = 576 * 576
        assert COSTS.way(Way.DENSE, (576, 576), 1) == pytest.approx(2 * weights / 3e10)
        assert COSTS.way(Way.DENSE, (576, 576), 512) == pytest.approx(2 * weights * 512 / 4e11)
        assert COSTS.way(Way.FACTORED, (576, 576), 1) == pytest.approx(2 * 2 * weights / 3e10)
        assert COSTS.way(Way.DELTA, (576, 576), 1, 72) == pytest.approx(1.25 * 2 * weights / 3e10)
        assert COSTS.way(Way.DENSE, (576, 576), 0) == 0

    def test_measures(self) -> None:
        found = measure(torch.float32, size=64, bytes_to_rotate=1 << 16)
        assert found.bytes_per_second > 0 and found.flops_per_second > 0 and found.call_seconds > 0

    def test_is_cached_and_measured_again_if_damaged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path))
        calls: list[torch.dtype] = []

        def fake(dtype: torch.dtype) -> CostModel:
            calls.append(dtype)
            return COSTS

        monkeypatch.setattr("zweave.cost_model.measure", fake)
        assert cost_model(torch.bfloat16) == COSTS == cost_model(torch.bfloat16)
        assert len(calls) == 1
        (file,) = (tmp_path / "cost").iterdir()
        for damage in ("", "[]", json.dumps({"format": "zweave-cost-1", "bytes_per_second": 1})):
            file.write_text(damage)
            assert cost_model(torch.bfloat16) == COSTS
        assert len(calls) == 4
        cost_model(torch.float32)
        assert len(calls) == 5


class TestBatchPlanner:
    def planner(self) -> BatchPlanner:
        """Slots: the base, one of few components, two without limits, and one that is merged."""
        ways = torch.tensor(
            [[Way.DENSE, Way.DELTA, Way.FACTORED, Way.FACTORED, Way.MERGED]] * 3, dtype=torch.uint8
        )
        return BatchPlanner(make_plan(SHAPES), ways, COSTS)

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
        plan = {Q: MatrixPlan((576, 576), dense=True, leading=80, factored=False)}
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
