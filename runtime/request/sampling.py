"""How the next token of an answer is sampled."""

from dataclasses import dataclass

from ..errors import ZweaveError, shortened
from ..validation import as_integer, as_number, is_integer, is_number, normalise


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is sampled; the default is greedy. Numbers may be numpy's or torch's, here and in `Request`.

    temperature: 0 takes the most likely token, 1 samples the model's own distribution.
    top_k: keep the k most likely tokens, 0 keeps all.
    top_p: keep the fewest of the most likely tokens whose probabilities add up to top_p, 1 keeps all.
    min_p: keep tokens at least min_p times as likely as the most likely one, 0 keeps all.
    seed: the request's draws depend on its seed alone; None takes a random one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        normalise(self, ("temperature", "top_p", "min_p"), as_number)
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
