"""The reference model that generated text is checked with: transformers in float32 with merged weights.

Greedy texts in bfloat16 diverge at near ties, so texts are not compared. Instead the regret of each token that a
provider chose is taken: how much less likely is it, to the reference model, than the likeliest token there?
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from zweave.decomposition import Decomposition
from zweave.experts import Expert

# Weights that differ from the base model's, by module name.
Changes: TypeAlias = Mapping[str, Tensor]

# Mean over all tokens, in nats. In bfloat16 our engine stays below .01; transformers, whose residual stream is
# rounded too, comes to .1 under a random expert. Answers under another expert, or none, give 1 to 10.
REGRET_LIMITS = {torch.bfloat16: 0.2, torch.float32: 0.01}
# In few bits what a random expert changes, and llama.cpp's activations, are rounded whatever the dtype is: .12 to .19
# as int4 deltas and .23 to .46 as refit factors, in float32 and on different instruction sets, whose texts soon differ.
FEW_BITS_LIMIT = 0.6


def load_transformers(directory: Path, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """transformers' own model, without an end token: it never ends a text by itself."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


class ReferenceModel:
    """Computes the regret of generated tokens under changed weights."""

    def __init__(self, directory: Path, decomposition: Decomposition) -> None:
        self._model = load_transformers(directory, torch.float32)
        self._decomposition = decomposition
        self.base = {name: self._model.get_submodule(name).weight.clone() for name in decomposition.names}
        # Those that changes may be of; the embedding and the head are added when something changes them.
        self._unchanged = dict(self.base)

    @torch.inference_mode()
    def regret(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        changes: Changes | None = None,
        adapted_from: int = 0,
    ) -> float:
        """Sum over all tokens of log p(likeliest) - log p(chosen).

        prompts, answers: all prompts of one length, and all answers.
        changes: weights that differ from the base model's.
        adapted_from: the first position that the change acts on.
        """
        tokens = torch.tensor([[*p, *a] for p, a in zip(prompts, answers, strict=True)])[:, :-1]
        cache = None
        if adapted_from:
            self._apply({})
            cache = self._model(tokens[:, :adapted_from], use_cache=True).past_key_values
        self._apply(changes or {})
        logits = self._model(tokens[:, adapted_from:], past_key_values=cache).logits[:, -len(answers[0]) :]
        chosen = logits.gather(2, torch.tensor(answers).unsqueeze(2)).squeeze(2)
        return (logits.amax(2) - chosen).sum().item()

    @torch.inference_mode()
    def likeliest(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        changes: Changes | None = None,
    ) -> list[list[float]]:
        """The log-probability of the likeliest token at each position of the answers, which it reads on.

        prompts, answers: of any lengths.
        changes: weights that differ from the base model's.
        """
        self._apply(changes or {})
        rows = [[*p, *a][:-1] for p, a in zip(prompts, answers, strict=True)]
        longest = max(map(len, rows))
        # Nothing attends to the padding on the right.
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        best = self._model(tokens).logits.log_softmax(2).amax(2)
        return [
            best[i, len(p) - 1 : len(row)].tolist()
            for i, (p, row) in enumerate(zip(prompts, rows, strict=True))
        ]

    def _apply(self, changes: Changes) -> None:
        for name in changes.keys() - self._unchanged.keys():
            self._unchanged[name] = self._model.get_submodule(name).weight.clone()
        for name, weight in self._unchanged.items():
            self._model.get_submodule(name).weight.copy_(changes.get(name, weight))

    def svf(self, expert: Expert) -> Changes:
        """W' = W + U diag(sigma * (z - 1)) V^T, in float32, over the components that z changes."""
        changes = {}
        for name, z in expert.z.items():
            u, sigma, vt = self._decomposition.factors(name)
            # A leading expert changes only the first components.
            kept = max((z != 1).nonzero().flatten().tolist(), default=-1) + 1
            delta = (sigma * (z - 1))[:kept]
            changes[name] = self.base[name] + (u[:, :kept] * delta) @ vt[:kept]
        return changes
