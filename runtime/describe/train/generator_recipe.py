"""How a generator is learnt."""

from dataclasses import dataclass

from torch import Tensor

from ...errors import ZweaveError
from ...train.recipe import rate_at


@dataclass(frozen=True, slots=True)
class GeneratorRecipe:
    """How a generator is learnt.

    The loss is the cross-entropy of the answers over the whole vocabulary, or in part the reward that is missed.

    descriptions: of a step, each of another task, each worded anew.
    rows: samples of each, the labels equally often.
    code: of the learning rate, the share that what makes the codes has.
    opening: steps at the beginning in which two parts have half of their descriptions under the same words. What the
        lower part writes is worth something if the upper one reads it, and the other way round: with all words evenly
        neither gets a gradient to begin with.
    policy: share of the loss that is 1 - p(answer): the policy gradient of a reward of 1 for the right answer, exact
        over all answers that there are, without drawing any.
    kl: weight of KL(expert || base) of the first token of answers to everyday prompts, which ask for no task.
    weight: of the mean relative change of the matrices, squared.
    seed: of the tasks, wordings, samples and first weights; what a step draws follows from it and the step alone.
    """

    steps: int = 1500
    descriptions: int = 16
    rows: int = 2
    lr: float = 2e-3
    warmup: int = 20
    decay: float = 0.4
    clip: float = 1.0
    code: float = 0.25
    opening: int = 400
    policy: float = 0.0
    kl: float = 0.0
    weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "descriptions", "rows", "warmup"):
            if getattr(self, name) < 1:
                raise ZweaveError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not (self.lr > 0 and self.clip > 0 and 0 <= self.decay <= 1 and self.weight >= 0):
            raise ZweaveError("lr and clip must be positive, decay between 0 and 1, weight at least 0")
        if self.opening < 0:
            raise ZweaveError(f"opening must be at least 0, not {self.opening}")
        for name in ("code", "policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ZweaveError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        if self.kl < 0:
            raise ZweaveError(f"kl must be at least 0, not {self.kl}")

    def lr_at(self, step: int) -> float:
        return self.lr * rate_at(step, self.steps, self.warmup, self.decay)

    def cost(self, log_probs: Tensor) -> Tensor:
        """What answers cost, [rows] from the log probabilities of the right ones, [rows]."""
        return (self.policy - 1) * log_probs + self.policy * (1 - log_probs.exp())
