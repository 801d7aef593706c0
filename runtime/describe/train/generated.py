"""A generator that learns end to end: descriptions in, answers to texts out, each row under the z made for it."""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ZweaveError
from ...tasks.everyday import everyday_prompts
from ...tasks.task import Sample, Task
from ...text.chatml import chat
from ...train.state_file import digest_of, load_state, save_state
from ..encoders import Encoder
from ..generator import Generator, change
from ..tasks import HiddenTask
from ..token_states import TokenStates
from .direct import PASS
from .generator_recipe import GeneratorRecipe
from .rows import Row, RowModel, told

ANY_TASK = "Do whatever is asked."
# Prompts of a step on which experts are held to the base.
_EVERYDAY = 8


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a generator learns from: a hidden task, the task that asks it, and its samples by their answers."""

    hidden: HiddenTask
    task: Task
    pools: Sequence[Sequence[Sample]]

    @classmethod
    def of(cls, hidden: HiddenTask, task: Task, samples: Sequence[Sample]) -> "Learnt":
        pools = [[s for s in samples if s.answer == label] for label in task.labels] or [list(samples)]
        return cls(hidden, task, [pool for pool in pools if pool])


@dataclass(frozen=True, slots=True)
class GeneratorStep:
    """The record of one step.

    loss: nats an answer, whatever the recipe makes of them.
    divergence: KL(expert || base) on everyday prompts, nats; 0 where the recipe does not ask for it.
    accuracy: share of the rows whose answer is greedily said, before the update.
    change: mean relative change of the matrices, squared.
    """

    step: int
    loss: float
    accuracy: float
    divergence: float
    change: float
    lr: float
    gradient_norm: float


class GeneratorTraining:
    """The training between its steps.

    The reader has learnt to read before, and stays as it is: it would unlearn what no task asks of it, which is to read
    wordings and combinations that no task has.

    sigma: [R] of each adapted matrix.
    static: takes one text for every description, so that one expert is learnt for all tasks.
    state: file that an unfinished training is gone on from, to the same bits.
    begun: what the generator has learnt before, as JSON has it: a state is of one beginning.
    """

    def __init__(
        self,
        model: RowModel,
        generator: Generator,
        encoder: Encoder,
        learnt: Sequence[Learnt],
        sigma: Mapping[str, Tensor],
        recipe: GeneratorRecipe,
        state: Path | None = None,
        static: bool = False,
        begun: object = None,
    ) -> None:
        if not learnt:
            raise ZweaveError("there is no task to learn from")
        self.model, self.generator, self.recipe, self.step = model, generator, recipe, 0
        self.encoder, self._learnt, self._path = encoder, learnt, state
        self._static = static
        words = Counter(one.hidden.labels for one in learnt).most_common(1)[0][0]
        self._under_same_words = [one for one in learnt if one.hidden.labels == words]
        generator.reader.requires_grad_(False)
        basis = [part.basis for part in generator.parts]
        codes = [one for name, one in generator.parts.named_parameters() if not name.endswith("basis")]
        groups = [{"params": basis, "share": 1.0}, {"params": codes, "share": recipe.code}]
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0)
        asked = [(one.task, [sample for pool in one.pools for sample in pool]) for one in learnt]
        # The others stay for evaluations.
        self._everyday = [chat(text) for text in everyday_prompts()[1::2]] if recipe.kl else []
        self._digest = digest_of(
            model.key,
            [encoder.name, asdict(generator.config), generator.ranks, begun],
            [asdict(recipe), static],
            [told(asked), self._everyday],
        )
        model.remember(asked, self._everyday)
        generator.to(model.device)
        self._sigma = {name: part.to(model.device) for name, part in sigma.items()}
        if state is not None and state.exists():
            saved = load_state(state, self._digest)
            generator.load_state_dict(saved["generator"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]

    @property
    def is_done(self) -> bool:
        return self.step >= self.recipe.steps

    def advance(self) -> GeneratorStep:
        """One update; ZweaveError if its gradient is not finite."""
        recipe, step = self.recipe, self.step
        drawn, texts = self._draw(step)
        made = self.generator(*(states.to(self.model.device) for states in texts))
        # The gradient stops here, and goes on when all passes have added to it.
        z = {name: part.detach().requires_grad_() for name, part in made.items()}
        loss, accuracy = self._answer(self._rows(drawn, step), z)
        diverged = self._hold(len(drawn), z) if recipe.kl else 0.0
        moved = change(made, self._sigma).mean()
        grads = [torch.zeros_like(part) if part.grad is None else part.grad for part in z.values()]
        torch.autograd.backward([*made.values(), recipe.weight * moved], [*grads, torch.ones_like(moved)])
        norm = nn.utils.clip_grad_norm_(self.generator.parameters(), recipe.clip).item()
        if not math.isfinite(norm):
            raise ZweaveError(f"the gradient of step {step + 1} is not finite: lower the learning rate")
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.lr_at(step) * group["share"]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        return GeneratorStep(step, loss, accuracy, diverged, moved.item(), recipe.lr_at(step), norm)

    def save(self) -> None:
        """Writes the state, where the training has a file for it."""
        if self._path is not None:
            state = {"generator": self.generator.state_dict(), "optimizer": self._optimizer.state_dict()}
            save_state(self._path, state | {"step": self.step, "digest": self._digest})

    def _draw(self, step: int) -> tuple[list[Learnt], list[TokenStates]]:
        """The tasks of a step, and for each part of the generator the states of what it is told.

        Two parts are told descriptions of other tasks: the lower one of a task that asks for the same with any words,
        the upper one of a task that has the same words for anything.
        """
        rng = random.Random(f"tasks {self.recipe.seed} {step}")
        count = min(self.recipe.descriptions, len(self._learnt))
        drawn = rng.sample(self._learnt, count)
        if len(self.generator.parts) > 1 and step < self.recipe.opening:
            same = rng.sample(self._under_same_words, min(count // 2, len(self._under_same_words)))
            drawn = [*same, *drawn][:count]
        if self._static:
            return drawn, [self.encoder.encode([ANY_TASK] * len(drawn))]
        if len(self.generator.parts) == 1:
            return drawn, [self.encoder.encode([one.hidden.describe(rng) for one in drawn])]
        tasks = [one.hidden for one in self._learnt]
        lower = [rng.choice([t for t in tasks if t.attribute == one.hidden.attribute]) for one in drawn]
        upper = [rng.choice([t for t in tasks if t.labels == one.hidden.labels]) for one in drawn]
        return drawn, [self.encoder.encode([task.describe(rng) for task in some]) for some in (lower, upper)]

    def _answer(self, rows: Sequence[Row], z: Mapping[str, Tensor]) -> tuple[float, float]:
        """Adds the gradient of what the answers cost; nats an answer, and the share that is greedily said."""
        loss, right = 0.0, 0
        for start in range(0, len(rows), PASS):
            scored = self.model.scored(rows[start : start + PASS], z)
            (self.recipe.cost(scored.log_probs).sum() / len(rows)).backward()
            loss -= scored.log_probs.sum().item()
            right += int(scored.is_greedy.sum())
        return loss / len(rows), right / len(rows)

    def _hold(self, experts: int, z: Mapping[str, Tensor]) -> float:
        """Adds the gradient of KL(expert || base) of the first token of answers to everyday prompts; its mean."""
        rng = random.Random(f"everyday {self.recipe.seed} {self.step}")
        prompts = rng.sample(self._everyday, _EVERYDAY)
        slots = [rng.randrange(experts) for _ in prompts]
        with torch.no_grad():
            base = self.model.first_tokens(prompts, slots, {})
        own = self.model.first_tokens(prompts, slots, z)
        divergence = F.kl_div(base, own, reduction="batchmean", log_target=True)
        (self.recipe.kl * divergence).backward()
        return divergence.item()

    def _rows(self, drawn: Sequence[Learnt], step: int) -> list[Row]:
        rng = random.Random(f"rows {self.recipe.seed} {step}")
        rows = []
        for slot, one in enumerate(drawn):
            first = rng.randrange(len(one.pools))
            for index in range(self.recipe.rows):
                pool = one.pools[(first + index) % len(one.pools)]
                rows.append(Row(one.task, rng.choice(pool), slot))
        return rows
