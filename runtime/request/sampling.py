"""How the next token of an answer is sampled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from ..errors import ZweaveError, shortened
from ..validation import as_integer, as_number, is_integer, is_number, is_positive, normalise

_MAX_DIGITS = 18
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is sampled; the default is greedy. Numbers may be numpy's or torch's, here and in `Request`.

    temperature: 0 takes the most likely token, 1 samples the model's own distribution.
    top_k: keep the k most likely tokens, 0 keeps all.
    top_p: keep the fewest of the most likely tokens whose probabilities add up to top_p, 1 keeps all.
    min_p: keep tokens at least min_p times as likely as the most likely one, 0 keeps all.
    seed: the request's draws depend on its seed alone; None takes a random one.
    repetition_penalty: divides positive logits of the tokens of prompt and answer, and multiplies negative ones; above
        1 they become less likely, below 1 more likely.
    presence_penalty: subtracted from the logits of the answer's tokens, -2 to 2.
    frequency_penalty: subtracted from them as often as each was generated, -2 to 2.
    logit_bias: added to the logits of tokens, {id: -100 to 100}; ids may be written as text, as in JSON.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        normalise(self, _NUMBERS, as_number)
        normalise(self, ("top_k", "seed"), as_integer)
        if not (is_number(self.temperature) and 0 <= self.temperature <= 100):
            raise ZweaveError(f"temperature must be from 0 to 100, not {shortened(self.temperature)}")
        if not (is_integer(self.top_k) and self.top_k >= 0):
            raise ZweaveError(
                f"top_k must be an integer of at least 0 (0 keeps all), not {shortened(self.top_k)}"
            )
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ZweaveError(f"top_p must be above 0 and at most 1, not {shortened(self.top_p)}")
        if not (is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise ZweaveError(f"min_p must be from 0 to 1, not {shortened(self.min_p)}")
        if self.seed is not None and not (is_integer(self.seed) and 0 <= self.seed < 2**64):
            raise ZweaveError(f"seed must be an integer from 0 to 2**64 - 1, not {shortened(self.seed)}")
        if not is_positive(self.repetition_penalty):
            raise ZweaveError(
                f"repetition_penalty must be above 0 (1 changes nothing), not {shortened(self.repetition_penalty)}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not (is_number(value) and -2 <= value <= 2):
                raise ZweaveError(f"{name} must be from -2 to 2, not {shortened(value)}")
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _biases(self.logit_bias))


def _is_written_id(token: object) -> TypeGuard[str]:
    """Whether a key is an id as JSON has it. More digits than any has would be slow to read, and alike to a dict."""
    return isinstance(token, str) and token.isdecimal() and len(token) <= _MAX_DIGITS


def _biases(given: object) -> dict[int, float]:
    """The biases by token id, as Python's own numbers."""
    if not isinstance(given, Mapping):
        raise ZweaveError(f"logit_bias must be {{token id: bias}}, not {type(given).__name__}")
    biases: dict[int, float] = {}
    for token, bias in given.items():
        token_id = int(token) if _is_written_id(token) else as_integer(token)
        number = as_number(bias)
        if token_id is None:
            raise ZweaveError(f"logit_bias must have token ids as its keys, not {shortened(token)}")
        if number is None or not -100 <= number <= 100:
            raise ZweaveError(
                f"logit_bias must be from -100 to 100, not {shortened(bias)} (token {token_id})"
            )
        biases[token_id] = number
    return biases
