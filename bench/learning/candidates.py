"""How candidate mixtures answer a task's shots: as one mixed batch, or with weights rebuilt for each."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from zweave.decomposition import Decomposition
from zweave.engine import Engine
from zweave.evaluation import answer_together
from zweave.experts import Expert, Mixture
from zweave.experts.mixture import mix_experts
from zweave.kernels import Decoder, LinearMode, pack
from zweave.model import Model
from zweave.model.merger import layer_and_linear
from zweave.request import Result
from zweave.search.few_shot import Weighting
from zweave.tasks import Sample, Task, prompt_ids

from ..serving.peers.peer_providers import Recompose

Weights: TypeAlias = Mapping[str, float | tuple[float, ...]]
# Token ids of an answer with their log-probabilities.
Answer: TypeAlias = list[tuple[int, float]]
# Of each candidate on each shot.
Answers: TypeAlias = list[list[Answer]]


class Answering(Protocol):
    """Answers the shots under every candidate, greedily over the whole vocabulary."""

    def __call__(self, task: Task, shots: Sequence[Sample], candidates: Sequence[Weights]) -> Answers: ...


class Population:
    """Candidates of a search over loaded experts: weights that add up to 1."""

    def __init__(self, experts: Mapping[str, Expert], size: int, layers: int) -> None:
        self.size, self._layers, self._experts = size, layers, dict(experts)
        self._weighting = Weighting(tuple(experts))

    def draw(self, number: int) -> list[Weights]:
        """The population of a round; rounds share no candidate, so that none is found in a cache."""
        rng = np.random.default_rng(number)
        return [self._weighting.mixture(rng.random(len(self._experts))) for _ in range(self.size)]

    def expert(self, candidate: Weights) -> Expert:
        weights = Mixture(tuple(candidate.items())).weights(self._layers)
        return mix_experts([self._experts[name] for name in sorted(candidate)], weights)


class MixedBatch:
    """As in `zweave expert search`: every candidate is a row of the bank, and all answer as one batch."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, task: Task, shots: Sequence[Sample], candidates: Sequence[Weights]) -> Answers:
        together = answer_together(self.engine, task, shots, candidates, logprobs=0)
        return [[_answer(result) for result in results] for results in together]


def _answer(result: Result) -> Answer:
    return [(token.token_id, token.logprob) for token in result.logprobs or ()]


class RebuiltInEngine(MixedBatch):
    """Our own forward pass with weights rebuilt for each candidate: shows what the mixed batch alone is worth."""

    def __init__(self, engine: Engine, decomposition: Decomposition) -> None:
        super().__init__(engine)
        self._decomposition = decomposition

    @cached_property
    def _factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        dtype = self.engine.config.torch_dtype
        parts = ((name, self._decomposition.factors(name)) for name in self._decomposition.names)
        return {name: (u.to(dtype), vt.to(dtype)) for name, (u, _, vt) in parts}

    def __call__(self, task: Task, shots: Sequence[Sample], candidates: Sequence[Weights]) -> Answers:
        answers: Answers = []
        for candidate in candidates:
            slot = self.engine.bank.acquire(Mixture.parse(candidate))
            try:
                self._rebuild(slot)
                answers += super().__call__(task, shots, [candidate])
            finally:
                self._forget(slot)
                self.engine.bank.release(slot)
        return answers

    @torch.inference_mode()
    def _rebuild(self, slot: int) -> None:
        bank, decoder = self.engine.bank, self._decoder
        for name, (u, vt) in self._factors.items():
            weight = (u * bank.tables.columns(name)[slot].to(u.dtype)) @ vt
            decoder.set_merged(*layer_and_linear(name), slot, pack(weight))
            bank.tables.modes_of(name)[slot] = int(LinearMode.MERGED)

    def _forget(self, slot: int) -> None:
        self.engine.bank.tables.restore_modes(slot)
        for name in self._factors:
            self._decoder.set_merged(*layer_and_linear(name), slot, None)

    @property
    def _decoder(self) -> Decoder:
        assert isinstance(self.engine.model, Model)  # of a CPU
        return self.engine.model.decoder


class RebuiltModel:
    """The paper's procedure: W' for a candidate, then its shots as one padded batch of transformers."""

    def __init__(
        self,
        directory: Path,
        decomposition: Decomposition,
        dtype: torch.dtype,
        population: Population,
        tokenizer: Any,
    ) -> None:
        self._population, self._tokenizer = population, tokenizer
        self._place = (directory, decomposition, dtype)

    @cached_property
    def _procedure(self) -> Recompose:
        return Recompose(*self._place)

    def __call__(self, task: Task, shots: Sequence[Sample], candidates: Sequence[Weights]) -> Answers:
        prompts = [prompt_ids(self._tokenizer, shot.prompt) for shot in shots]
        answers = []
        for candidate in candidates:
            self._procedure.become(self._population.expert(candidate))
            answers.append(self._answer(prompts, task.max_tokens))
        return answers

    @torch.inference_mode()
    def _answer(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        longest, ends = max(map(len, prompts)), list(self._tokenizer.eos_ids)
        tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = self._procedure.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=ends or None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        found = output.sequences[:, longest:]
        steps = torch.stack(output.logits, dim=1).float().log_softmax(-1)
        likelihoods = steps.gather(2, found.unsqueeze(2)).squeeze(2)
        return [
            _up_to_end(list(zip(ids, values, strict=True)), ends)
            for ids, values in zip(found.tolist(), likelihoods.tolist(), strict=True)
        ]


def _up_to_end(answer: Answer, ends: Sequence[int]) -> Answer:
    """What follows an end token is padding."""
    at = next((i for i, (token, _) in enumerate(answer) if token in ends), len(answer))
    return answer[: at + 1]
