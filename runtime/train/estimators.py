"""Policy gradient estimators: advantages of sampled answers, and the loss for answers from a fixed list of labels."""

import math

import torch
from torch import Tensor


def leave_one_out(reward: Tensor) -> Tensor:
    """Advantage [B, draws] of each draw over the mean of the prompt's other draws (Kool et al. 2019)."""
    draws = reward.shape[-1]
    return (reward - reward.mean(-1, keepdim=True)) * draws / (draws - 1)


def group_normalised(reward: Tensor) -> Tensor:
    """Advantage [B, draws] in standard deviations of the prompt's draws; 0 where all are equal (GRPO)."""
    deviation = reward.std(-1, keepdim=True)
    centred = reward - reward.mean(-1, keepdim=True)
    return torch.where(deviation > 0, centred / deviation.clamp(min=1e-6), 0.0)


def label_loss(
    logits: Tensor,
    labels: Tensor,
    reward: Tensor,
    *,
    draws: int,
    entropy: float,
    mass: float,
    balance: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Loss whose gradient estimates that of -(E[reward] + entropy * H + mass * log sum p(label) + balance * S).

    logits: [B, vocabulary], float32
    labels: [K], int64, token ids
    The rest is as `choice_loss` takes it.
    """
    label_logits = logits[:, labels]
    log_mass = label_logits.logsumexp(-1) - logits.logsumexp(-1)
    return choice_loss(
        label_logits,
        log_mass,
        reward,
        draws=draws,
        entropy=entropy,
        mass=mass,
        balance=balance,
        generator=generator,
    )


def choice_loss(
    label_logits: Tensor,
    log_mass: Tensor,
    reward: Tensor,
    *,
    draws: int,
    entropy: float,
    mass: float,
    balance: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Loss whose gradient estimates that of -(E[reward] + entropy * H + mass * log sum p(label) + balance * S).

    Policy, reward and entropy H are over the labels alone: a small model hardly ever says a label unprompted, and
    would learn nothing. The mass term makes it say them: without it another word stays above the right label.
    Half of the actions are drawn from the policy and half uniformly, weighted by their importance, so that a policy
    which has collapsed onto one label still explores the others. Where no prompt gets a label any more that is not
    enough: all of the label's gradient shrinks with its probability. The gradient of S does not: S is the mean over the
    labels of the log of their share in the batch, for batches that hold every label equally.

    label_logits: [B, K], float32, of each label, up to a constant of the prompt
    log_mass: [B], float32, log sum p(label) over the whole vocabulary
    reward: [B, K], float32, of each label
    draws: actions a prompt, at least 2
    """
    log_policy = label_logits.log_softmax(-1)
    policy = log_policy.exp()
    with torch.no_grad():
        behaviour = 0.5 * policy + 0.5 / label_logits.shape[-1]
        action = torch.multinomial(behaviour, draws, replacement=True, generator=generator)
        importance = policy.gather(-1, action) / behaviour.gather(-1, action)
        gained = reward.gather(-1, action)
        baseline = importance * gained - leave_one_out(importance * gained)
        advantage = importance * (gained - baseline)
    score = (advantage * log_policy.gather(-1, action)).mean()
    entropy_bonus = -(policy * log_policy).sum(-1).mean()
    log_share = log_policy.logsumexp(0).mean() - math.log(len(label_logits))
    return -(score + entropy * entropy_bonus + mass * log_mass.mean() + balance * log_share)
