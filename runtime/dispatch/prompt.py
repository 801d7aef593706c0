"""The strategy `prompt`: the model's own label scores after a classification prompt, without generating a token.

p = softmax(score - offset) over the labels, where `offset` is the mean score of each label on other texts (Zhao et
al. 2021, arXiv 2102.09690): a model prefers some labels whatever it reads. With an expert that was trained to classify
this is the classification expert of Transformer² (section 3.2).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor

from ..dispatcher import Dispatch, Prompt, ReadScores, RenamedLook
from ..engine.engine import Engine
from ..errors import ZweaveError
from ..experts.mixture import ExpertChoice
from ..request import Request
from ..tasks.render import answer_ids
from ..text.tokenizer import Tokenizer
from .routes import Routes

# Content-free texts, for a calibration without samples.
CONTENT_FREE = ("N/A", "...", "text")


class PromptDispatcher(RenamedLook):
    """Chooses by the label that the model finds likeliest after a question about the prompt.

    routes: their labels are the possible answers, each one token and written with the space before it.

    instruction: the question.
    opening: the first words of the answer.
    expert: the expert that reads the question; None is the base model.
    instruction_first: the question stands before the text, as in the paper, and all prompts share its KV cache; by
        default it stands after the text and shares the text's KV cache with the request.
    offsets: subtracted from the labels' scores, see `calibrated`.
    text_tokens: the most tokens of the text that are read; None reads all.
    Raises ZweaveError for fewer than two labels and offsets that do not fit them.
    """

    blocking = False

    def __init__(
        self,
        routes: Routes,
        instruction: str,
        opening: str = "",
        *,
        expert: ExpertChoice = None,
        instruction_first: bool = False,
        offsets: Sequence[float] = (),
        text_tokens: int | None = None,
    ) -> None:
        if len(routes.labels) < 2:
            raise ZweaveError("a dispatcher that asks the model needs two labels or more")
        if offsets and len(offsets) != len(routes.labels):
            raise ZweaveError(f"{len(offsets)} offsets do not fit {len(routes.labels)} labels")
        if text_tokens is not None and text_tokens < 1:
            raise ZweaveError(f"text_tokens must be at least 1, not {text_tokens!r}")
        self.routes = routes
        self.instruction = instruction
        self.opening = opening
        self.expert = expert
        self.instruction_first = instruction_first
        self.offsets = np.array(offsets or [0.0] * len(routes.labels))
        self.text_tokens = text_tokens

    def probe(self, prompt: Prompt) -> ReadScores:
        return ReadScores(
            self._question(prompt), _label_ids(prompt.tokenizer, self.routes.labels), self.expert
        )

    def choose(self, prompt: Prompt, evidence: Sequence[float] | Tensor | None) -> Dispatch:
        scores = np.asarray(evidence, dtype=np.float64) - self.offsets
        weights = np.exp(scores - scores.max())
        return self.routes.dispatch(self.routes.labels, (weights / weights.sum()).tolist())

    def calibrated(self, engine: Engine, texts: Sequence[str] = CONTENT_FREE) -> "PromptDispatcher":
        """A copy whose offsets are the labels' mean scores on some texts.

        texts: unlabelled, best of the kind that is expected; content-free ones by default.
        Raises ZweaveError as the engine does.
        """
        tokenizer = engine.tokenizer
        probes = [self.probe(_as_prompt(tokenizer, text)) for text in texts]
        results = engine.generate(
            Request(list(probe.tokens), expert=probe.expert, max_tokens=1, score=probe.score)
            for probe in probes
        )
        failed = [result.error for result in results if result.error]
        if failed or not results:
            raise ZweaveError(f"the dispatcher cannot be calibrated: {failed[0] if failed else 'no texts'}")
        means = np.mean([result.scores or () for result in results], axis=0)
        return PromptDispatcher(
            self.routes,
            self.instruction,
            self.opening,
            expert=self.expert,
            instruction_first=self.instruction_first,
            offsets=means.tolist(),
            text_tokens=self.text_tokens,
        )

    def _question(self, prompt: Prompt) -> list[int]:
        """The classification prompt's tokens."""
        tokenizer, end = prompt.tokenizer, prompt.text_end

        def written(text: str) -> list[int]:
            return tokenizer.encode(text, special=False)

        start = tokenizer.user_text_start(prompt.tokens, end)
        if self.text_tokens is not None:
            end = min(end, start + self.text_tokens)
        tokens = list(prompt.tokens)
        closing = [
            *(tokenizer.assistant_header or written("\n")),
            *(written(self.opening) if self.opening else ()),
        ]
        if self.instruction_first:
            before = [*tokenizer.user_opening, *written(f"{self.instruction}\n")]
            return [*before, *tokens[start:end], *closing]
        return [*tokens[:end], *written(f"\n{self.instruction}"), *closing]


@lru_cache(maxsize=64)
def _label_ids(tokenizer: Tokenizer, labels: tuple[str, ...]) -> tuple[int, ...]:
    ids = [answer_ids(tokenizer, label) for label in labels]
    for label, found in zip(labels, ids, strict=True):
        if len(found) != 1:
            raise ZweaveError(
                f"the label {label!r} is {len(found)} tokens, it must be one: take another word"
            )
    if len({found[0] for found in ids}) != len(ids):
        raise ZweaveError("two labels are the same token for this model")
    return tuple(found[0] for found in ids)


def _as_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    """A text as a user would send it."""
    if tokenizer.assistant_header:
        tokens = tokenizer.chat([{"role": "user", "content": text}])
    else:
        tokens = tokenizer.encode(text)
    return Prompt(tokens, tokenizer.after_prompt_start(tokens), tokenizer)
