"""A reader that learns to read: which attribute a description asks for, and which word means that a text has it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...train.recipe import rate_at
from ..encoders import Encoder
from ..reader import Reader
from ..tasks import HiddenTask
from ..tasks.label_words import LABEL_WORDS
from ..token_states import TokenStates

_NONE = -100


@dataclass(frozen=True, slots=True, eq=False)
class DescriptionSet:
    """Descriptions and what they say.

    attribute: [descriptions], index among the attributes.
    yes, no: [descriptions], index among the label words; -100 for a task without.
    """

    texts: TokenStates
    attribute: Tensor
    yes: Tensor
    no: Tensor

    @classmethod
    def drawn(
        cls,
        tasks: Sequence[HiddenTask],
        attributes: Sequence[str],
        encoder: Encoder,
        count: int,
        seed: str,
        held_out: bool = False,
    ) -> "DescriptionSet":
        """Descriptions of tasks that are drawn with their wordings from a seed."""
        rng = random.Random(seed)
        chosen = [rng.choice(tasks) for _ in range(count)]
        words = [tuple(LABEL_WORDS.index(label.strip()) for label in task.labels) for task in chosen]
        return cls(
            encoder.encode([task.describe(rng, held_out) for task in chosen]),
            torch.tensor([attributes.index(task.attribute) for task in chosen]),
            torch.tensor([pair[0] if pair else _NONE for pair in words]),
            torch.tensor([pair[1] if pair else _NONE for pair in words]),
        )


@dataclass(frozen=True, slots=True)
class ReadingRecipe:
    """How a reader learns to read.

    descriptions: drawn once, and gone through in batches.
    dropped: share of the tokens that are left out of a description, others each time.
    """

    steps: int = 1500
    descriptions: int = 6000
    batch: int = 64
    lr: float = 1e-3
    dropped: float = 0.1
    seed: int = 0


class ReadingTraining:
    """A reader with two linear maps that say what it has read; they are not kept."""

    def __init__(self, reader: Reader, told: DescriptionSet, attributes: int, recipe: ReadingRecipe) -> None:
        self.reader, self._told, self._recipe = reader, told, recipe
        self.attribute = nn.Linear(reader.task, attributes)
        self.yes = nn.Linear(reader.task, len(LABEL_WORDS))
        self.parameters = [
            parameter for part in (reader, self.attribute, self.yes) for parameter in part.parameters()
        ]
        self._optimizer = torch.optim.AdamW(self.parameters, lr=recipe.lr, weight_decay=0.01)
        self._random = torch.Generator().manual_seed(recipe.seed)
        self.step = 0

    @property
    def is_done(self) -> bool:
        return self.step >= self._recipe.steps

    def advance(self) -> float:
        """One update; the loss in nats."""
        told, recipe = self._told, self._recipe
        chosen = torch.randint(len(told.texts), (recipe.batch,), generator=self._random)
        vectors = self.reader(self._thinned(told.texts[chosen]))
        loss = F.cross_entropy(self.attribute(vectors), told.attribute[chosen])
        yes = told.yes[chosen]
        if (yes != _NONE).any():
            loss = loss + F.cross_entropy(self.yes(vectors), yes, ignore_index=_NONE)
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.lr * rate_at(self.step, recipe.steps, warmup=50, decay=0.5)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def _thinned(self, texts: TokenStates) -> TokenStates:
        """Without some of the tokens, so that no single one is what tells a description; the first one stays."""
        stays = torch.rand(texts.mask.shape, generator=self._random) >= self._recipe.dropped
        stays[:, 0] = True
        return TokenStates(texts.states, texts.mask & stays)

    @torch.no_grad()
    def accuracy(self, told: DescriptionSet) -> "ReadingAccuracy":
        """The shares of descriptions that are read rightly."""
        vectors = self.reader(told.texts)
        words, labelled = self.yes(vectors), told.yes >= 0
        words, yes, no = words[labelled], told.yes[labelled, None], told.no[labelled, None]
        pair_of = torch.arange(len(LABEL_WORDS)) // 2
        right = words.gather(1, yes) > words.gather(1, no)
        return ReadingAccuracy(
            float((self.attribute(vectors).argmax(1) == told.attribute).float().mean()),
            float((pair_of[words.argmax(1)] == pair_of[yes[:, 0]]).float().mean()),
            float(right.float().mean()),
        )


@dataclass(frozen=True, slots=True)
class ReadingAccuracy:
    """Shares of descriptions of which a reader knows the attribute, the pair of words, and which of them means yes."""

    attribute: float
    pair: float
    order: float


def read_descriptions(
    reader: Reader, encoder: Encoder, tasks: Sequence[HiddenTask], recipe: ReadingRecipe
) -> None:
    """Has a reader learn what the descriptions of some tasks say."""
    attributes = sorted({task.attribute for task in tasks})
    told = DescriptionSet.drawn(tasks, attributes, encoder, recipe.descriptions, f"reading {recipe.seed}")
    training = ReadingTraining(reader, told, len(attributes), recipe)
    while not training.is_done:
        training.advance()
