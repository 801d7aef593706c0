"""What an expert does to the beginning of answers: how far it leads from the base model, and to which words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div

from ..engine.engine import Engine
from ..text.prompt_template import PromptTemplate


@dataclass(frozen=True, slots=True)
class AnswerEffect:
    """Means over texts, of the first token of an answer.

    divergence: KL(expert || base), in nats.
    words: the likeliest tokens under the expert, with their probabilities.
    """

    divergence: float
    words: Mapping[str, float]

    @classmethod
    def of(
        cls, engine: Engine, expert: str | None, template: PromptTemplate, texts: Sequence[str], most: int = 3
    ) -> "AnswerEffect":
        """What a loaded expert does where texts are asked in a template's words."""
        prompts = [template.ids(engine.tokenizer, text) for text in texts]
        own, base = (
            torch.stack([engine.prompt_logits(ids, choice)[-1] for ids in prompts]).log_softmax(-1)
            for choice in (expert, None)
        )
        top = own.exp().mean(0).topk(most)
        words = [engine.tokenizer.decode([token]) for token in top.indices.tolist()]
        divergence = float(kl_div(base, own, reduction="batchmean", log_target=True))
        return cls(divergence, dict(zip(words, top.values.tolist(), strict=True)))
