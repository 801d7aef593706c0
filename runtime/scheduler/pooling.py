"""The mean hidden state of a prompt, pooled while the prompt is computed: the same bits however it is cut in chunks.

States are added in float64, one token after the other, so that the sum does not depend on where a chunk ends. A prompt
whose beginning is in the prefix tree starts from the sum that is stored there.
"""

from torch import Tensor

from ..kv_cache.running_sums import Sum, mean_state, running_sums


class Pooling:
    """A first pass's mean over the first `stop` prompt tokens of the base model's states that enter `layer`.

    layer: the layer whose input states are averaged.
    stop: number of prompt tokens to average.
    exit_layer: `layer` or a higher one: the tokens leave the model there, and the answer resumes there if its
        mixture adapts no layer below. None computes the tokens in all layers.
    prompt_kv_reusable: whether every candidate's answer can use the base model's keys and values of these tokens.
    tokens: number of tokens summed so far.
    """

    def __init__(self, layer: int, stop: int, exit_layer: int | None, prompt_kv_reusable: bool) -> None:
        self.layer = layer
        self.stop = stop
        self.exit_layer = exit_layer
        self.prompt_kv_reusable = prompt_kv_reusable
        self.tokens = 0
        self._sum: Sum | None = None

    @property
    def done(self) -> bool:
        return self.tokens == self.stop

    def restart(self, tokens: int, total: Sum | None) -> None:
        """Starts after the first `tokens` tokens, whose states add up to `total`."""
        self.tokens, self._sum = tokens, total

    def add(self, start: int, states: Tensor) -> None:
        """Adds the states [tokens, hidden] of the tokens from `start` on; ignores them unless they continue the sum."""
        if start != self.tokens:
            return
        self._sum, self.tokens = running_sums(self._sum, states)[-1].copy(), start + len(states)

    def add_sum(self, start: int, count: int, total: Sum) -> None:
        """Adds the sum [hidden] of the states of `count` tokens from `start` on, under the same condition."""
        if start != self.tokens:
            return
        self._sum = total if self._sum is None else self._sum + total
        self.tokens = start + count

    def mean(self) -> Tensor:
        """[hidden] float32."""
        assert self._sum is not None
        return mean_state(self._sum, self.tokens)
