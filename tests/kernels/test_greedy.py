"""The op greedy: the largest value, the lowest index on a tie, and rows that are not finite."""

import pytest
import torch

from zweave.kernels import greedy, greedy_ref


@pytest.mark.parametrize("function", [greedy, greedy_ref])
@pytest.mark.parametrize("width", [1, 7, 63, 64, 65, 199, 1000, 49152])
def test_values(width, function, poisoned_outputs) -> None:
    logits = torch.randn(5, width + 3, generator=torch.Generator().manual_seed(width))[:, :width]
    ids, finite = function(logits)
    assert torch.equal(ids, logits.double().argmax(1)) and finite.all()


@pytest.mark.parametrize("function", [greedy, greedy_ref])
@pytest.mark.parametrize("at", [0, 15, 16, 63, 64, 69])
def test_every_place_is_looked_at(at, function) -> None:
    logits = torch.full((4, 70), -3.0)
    logits[0, at] = -2.0
    for row, value in enumerate((float("nan"), float("inf"), -float("inf")), start=1):
        logits[row, at] = value
    ids, finite = function(logits)
    assert ids.tolist() == [at, 0, 0, 0]
    assert finite.tolist() == [True, False, False, False]


@pytest.mark.parametrize("function", [greedy, greedy_ref])
def test_the_lowest_id_wins_a_tie(function) -> None:
    logits = torch.zeros(2, 130)
    logits[0, [5, 17, 129]] = 1.0
    logits[1, [129, 64]] = 2.0
    assert function(logits)[0].tolist() == [5, 64]


def test_refuses() -> None:
    for wrong in (torch.zeros(2, 0), torch.zeros(3), torch.zeros(2, 3, dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError, match=r"^greedy: "):
            greedy(wrong)
