"""The recipe of a training: all that its result follows from besides the task and the weights."""

from dataclasses import dataclass, replace
from typing import Any, get_args

from ..errors import ZweaveError
from ..experts.support import Support
from ..names import AdapterKind, Objective, Scope
from ..tasks.task import Task, exact


@dataclass(frozen=True, slots=True)
class Recipe:
    """The hyperparameters of a training.

    objective: "reinforce" (many actions a prompt, each against the mean of the others; labels explored among
        themselves), "plain" (the paper's: the bare reward, and KL to the base model), "grpo" (rewards normalised
        within a prompt's answers) or "sft" (likelihood of the samples' answers).
    support, scope, first_layer: what the expert may change, see zweave.Expert.
    steps: at most.
    batch: prompts of a step.
    draws: actions of a prompt, all from one forward pass.
    lr: AdamW's largest learning rate.
    warmup: steps of rising learning rate.
    decay: share of the steps, at the end, of falling learning rate.
    clip: largest norm of the gradient.
    entropy: weight of the bonus on the labels' entropy; falls to 5% of it over 80% of the steps.
    mass: weight of the bonus on the log of the labels' share of the whole vocabulary's probability.
    balance: weight of the bonus on the log of each label's share in the batch, for tasks that lose a label.
    kl: weight of the KL divergence to the base model, for "plain".
    validate_every: steps between validations.
    validation: samples of a validation.
    patience: validations without a gain after which training ends.
    adapter: "svf", or "lora", the baseline.
    rank: of lora.
    seed: of the order of samples and all draws.
    """

    objective: Objective = "reinforce"
    support: str = "full"
    scope: Scope = "always"
    first_layer: int = 0
    steps: int = 60
    batch: int = 16
    draws: int = 32
    lr: float = 2e-3
    warmup: int = 5
    decay: float = 0.4
    clip: float = 1.0
    entropy: float = 0.4
    mass: float = 0.2
    balance: float = 0.0
    kl: float = 0.1
    validate_every: int = 20
    validation: int = 200
    patience: int = 5
    adapter: AdapterKind = "svf"
    rank: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kinds in (("objective", Objective), ("scope", Scope), ("adapter", AdapterKind)):
            if getattr(self, name) not in get_args(kinds):
                wanted = ", ".join(get_args(kinds))
                raise ZweaveError(f"{name} must be one of {wanted}, not {getattr(self, name)!r}")
        for name in ("steps", "batch", "validate_every", "validation", "patience", "rank"):
            if getattr(self, name) < 1:
                raise ZweaveError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.draws < 2 and self.objective in ("reinforce", "grpo"):
            raise ZweaveError(f"{self.objective} compares a prompt's answers: draws must be at least 2")
        if self.draws < 1 or self.first_layer < 0 or self.warmup < 0:
            raise ZweaveError("draws must be at least 1, first_layer and warmup at least 0")
        if not (self.lr > 0 and 0 <= self.decay <= 1 and self.clip > 0):
            raise ZweaveError("lr and clip must be positive, decay between 0 and 1")
        if min(self.entropy, self.mass, self.balance, self.kl) < 0:
            raise ZweaveError("entropy, mass, balance and kl must be at least 0")
        if self.adapter == "lora" and (self.support != "full" or self.first_layer):
            raise ZweaveError("support and first_layer are for the adapter svf")
        Support.parse(self.support)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, linear decay."""
        return self.lr * rate_at(step, self.steps, self.warmup, self.decay)

    def entropy_at(self, step: int) -> float:
        return self.entropy * (1.0 - 0.95 * min(1.0, step / max(1.0, 0.8 * self.steps)))


def rate_at(step: int, steps: int, warmup: int, decay: float) -> float:
    """Share of the learning rate at a step: linear warm-up, constant, linear over the last `decay` of the steps."""
    rising = (step + 1) / warmup if step < warmup else 1.0
    return min(1.0, rising, (steps - step) / max(1.0, decay * steps))


# The five domains begin 5 nats apart; without it one of them was lost for good.
BALANCE = {"domains": 0.5}
STEPS = {"domains": 40, "trec": 90, "addition": 90, "subtraction": 90}


def default_objective(task: Task) -> tuple[Objective, str]:
    """The objective that suits a task's data, and why.

    Reinforcement needs answers that are right now and then. Among labels that is sure, and a reward of the task's own
    may know more than one right answer. A text that must be met in full is seldom drawn by chance: it is shown instead.
    """
    if task.labels:
        return "reinforce", "the answers are labels, each with its reward"
    if task.judge is not exact:
        return "reinforce", "the task judges answers itself"
    if task.name in STEPS:
        return "reinforce", "the base model gives right answers now and then"
    return "sft", "an answer has to be met in full, which the base model seldom does by chance"


def default_recipe(task: Task, **chosen: Any) -> Recipe:
    """The recipe that is known to work for a task, with the chosen values in place of its own; None chooses nothing.

    Fewer components need larger steps and more of them; an expert that acts after the prompt needs more.
    """
    chosen = {name: value for name, value in chosen.items() if value is not None}
    objective, _ = default_objective(task)
    steps, balance = STEPS.get(task.name, 60), BALANCE.get(task.name, 0.0)
    recipe = Recipe(objective, steps=steps, balance=balance)
    if not task.labels:
        recipe = replace(recipe, draws=8)
    if not chosen.get("support", "full").startswith("full"):
        recipe = replace(recipe, lr=3 * recipe.lr, steps=recipe.steps * 3 // 2)
    if chosen.get("scope") == "after_prompt":
        recipe = replace(recipe, steps=recipe.steps * 3 // 2)
    if chosen.get("adapter") == "lora":
        recipe = replace(recipe, lr=1e-3)
    return replace(recipe, **chosen)
