"""The estimators of gradients: against exact ones, and the advantages by hand."""

import pytest
import torch

from zweave.train import estimators


@pytest.mark.parametrize("draws", [2, 16])
@pytest.mark.parametrize(("entropy", "mass"), [(0.0, 0.0), (0.4, 0.0), (0.4, 0.2)])
@pytest.mark.parametrize("start", [[0.0, 0.0, 0.0, 0.0], [-1.0, 9.0, 4.0, 0.0]], ids=["uniform", "collapsed"])
@pytest.mark.parametrize("reward", [[-1.0, 1.0, -1.0], [0.2, 1.0, -0.5]], ids=["one right", "graded"])
def test_label_loss_estimates_the_exact_gradient(
    start: list[float], entropy: float, mass: float, draws: int, reward: list[float]
) -> None:
    logits = torch.tensor(start, requires_grad=True)
    labels = torch.tensor([3, 2, 0])
    policy = logits[labels].softmax(-1)
    exact = -(policy * torch.tensor(reward)).sum() + entropy * (policy * policy.log()).sum()
    exact = exact - mass * logits.softmax(-1)[labels].sum().log()
    (gradient,) = torch.autograd.grad(exact, logits)
    copies = 400_000 // draws
    loss = estimators.label_loss(
        logits.expand(copies, 4),
        labels,
        torch.tensor(reward).expand(copies, 3),
        draws=draws,
        entropy=entropy,
        mass=mass,
        generator=torch.Generator().manual_seed(0),
    )
    (estimate,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(estimate, gradient, rtol=0.0, atol=0.01)


def test_a_label_that_is_lost_keeps_a_gradient_by_the_balance() -> None:
    # Prompt 1 is of label 1, which the policy never says; without the balance hardly anything tells it.
    logits = torch.tensor([[30.0, 0.0], [29.0, 0.0], [30.0, 1.0]], requires_grad=True)
    arguments = (torch.tensor([0, 1]), torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]))
    found = {}
    for balance in (0.0, 0.5):
        loss = estimators.label_loss(
            logits,
            *arguments,
            draws=64,
            entropy=0.0,
            mass=0.0,
            balance=balance,
            generator=torch.Generator().manual_seed(0),
        )
        (found[balance],) = torch.autograd.grad(loss, logits)
    assert found[0.0].abs().max() < 1e-9
    # Each label has half of the weight, which goes to its prompts by the share that each has of it.
    share = (logits.detach()[:, 1] - logits.detach()[:, 0]).softmax(0)
    torch.testing.assert_close(found[0.5][:, 1], -0.25 * share, atol=1e-6, rtol=0.0)


def test_leave_one_out_compares_with_the_other_draws() -> None:
    advantage = estimators.leave_one_out(torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    torch.testing.assert_close(advantage, torch.tensor([[2.0, -1.0, -1.0], [0.0, 0.0, 0.0]]))


def test_group_normalised_counts_in_deviations_and_ignores_even_groups() -> None:
    advantage = estimators.group_normalised(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]]))
    torch.testing.assert_close(advantage, torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))
