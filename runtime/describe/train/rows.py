"""Rows of a step: a text and an answer, each under an expert of its own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...checkpoint import resolve_model
from ...decomposition import decompose
from ...device import parse_device
from ...errors import ZweaveError
from ...tasks.render import prompt_ids, target_tokens
from ...tasks.task import Sample, Task
from ...text.tokenizer import Tokenizer
from ...train.forward import Part, joint_hidden_states
from ...train.run import load_model
from .prompt_cache import CachedPrompt, PromptCache, joined
from .row_linear import RowExperts, adapt_rows


@dataclass(frozen=True, slots=True)
class Row:
    """A sample under an expert.

    slot: of the expert among those of the pass.
    """

    task: Task
    sample: Sample
    slot: int


def told(samples: Iterable[tuple[Task, Sequence[Sample]]]) -> list[object]:
    """What samples tell a training, as JSON has it: a state is of one."""
    return [[task.name, [(sample.prompt, sample.answer) for sample in some]] for task, some in samples]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a pass says of its rows.

    log_probs: [rows], of the right answer, its end token included where it has one; differentiable.
    is_greedy: [rows], whether the answer is what the model says, over the whole vocabulary.
    """

    log_probs: Tensor
    is_greedy: Tensor


class _Asked(NamedTuple):
    """Token ids of a prompt up to where experts begin, of what follows it, and of the answer; the last of these is
    never read."""

    prompt: list[int]
    rest: list[int]
    answer: list[int]

    @property
    def following(self) -> list[int]:
        return [*self.rest, *self.answer[:-1]]


class RowModel:
    """The base model that reads prompts once, and answers under one expert a row.

    ranks: R of each adapted matrix.
    first_layer: that experts change; what lies below it is computed once, too.
    digest: of the base weights.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        experts: RowExperts,
        ranks: Mapping[str, int],
        first_layer: int = 0,
        digest: str = "",
    ) -> None:
        self.model, self.tokenizer, self.ranks, self._digest = model, tokenizer, dict(ranks), digest
        self.first_layer, self._experts = first_layer, experts
        self.prompts = PromptCache(model, first_layer)

    @classmethod
    def open(cls, model: str, dtype: torch.dtype, first_layer: int = 0, device: str = "cpu") -> "RowModel":
        """A model on a device, "cpu" or "cuda".

        model: as zweave.Engine takes it.
        Raises ZweaveError if it cannot be opened or has no such layer, and if the device is not there.
        """
        place, checkpoint = parse_device(device), resolve_model(model)
        if not 0 <= first_layer < checkpoint.config.num_layers:
            raise ZweaveError(
                f"first_layer {first_layer}: the model has layers 0 to {checkpoint.config.num_layers - 1}"
            )
        module = load_model(checkpoint, dtype).requires_grad_(False)
        # Before the model takes the device's memory.
        factors = decompose(checkpoint, device=device).factors
        experts, ranks = adapt_rows(module.to(place), factors, first_layer)
        return cls(module, Tokenizer(checkpoint.directory), experts, ranks, first_layer, checkpoint.digest())

    @property
    def key(self) -> str:
        """What its numbers follow from: weights, dtype, device, and the first layer that experts change."""
        return f"{self._digest} {next(self.model.parameters()).dtype} {self.device.type} {self.first_layer}"

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def remember(self, samples: Iterable[tuple[Task, Sequence[Sample]]], prompts: Sequence[str] = ()) -> None:
        """Computes prompts before they are asked for, in one order: whoever goes on later has the same bits.

        prompts: that `first_tokens` will be asked.
        """
        self._experts.z = {}
        for task, some in samples:
            self._cached([self._asked(task, sample) for sample in some])
        if prompts:
            self._cached([self._waiting(prompt) for prompt in prompts])

    def scored(self, rows: Sequence[Row], z: Mapping[str, Tensor]) -> Scored:
        """One pass over the rows' last headers and answers.

        z: [slots, R] float32 of each adapted matrix.
        """
        asked = [self._asked(row.task, row.sample) for row in rows]
        log_policy = self._log_policy(asked, [row.slot for row in rows], z)
        target = self._whole([token for one in asked for token in one.answer])
        owner = self._whole([index for index, one in enumerate(asked) for _ in one.answer])
        log_probs = log_policy.gather(1, target[:, None])[:, 0]
        misses = (log_policy.argmax(-1) != target).float()
        zero = torch.zeros(len(rows), device=self.device)
        return Scored(zero.index_add(0, owner, log_probs), zero.index_add(0, owner, misses) == 0)

    def first_tokens(self, prompts: Sequence[str], slots: Sequence[int], z: Mapping[str, Tensor]) -> Tensor:
        """Log probabilities [prompts, vocabulary] of an answer's first token, each prompt under one of the experts.

        prompts: conversations that wait for an answer.
        """
        return self._log_policy([self._waiting(prompt) for prompt in prompts], slots, z)

    def _log_policy(self, asked: Sequence[_Asked], slots: Sequence[int], z: Mapping[str, Tensor]) -> Tensor:
        """Log probabilities [tokens of all answers, vocabulary]."""
        prompts = self._cached(asked)
        tree, leaves, cache = joined(prompts)
        nodes: list[int] = []
        slot_of: list[int] = []
        for one, slot, leaf in zip(asked, slots, leaves, strict=True):
            tree.add(one.following, leaf)
            slot_of += [slot] * len(one.following)
            nodes += range(len(tree) - len(one.answer), len(tree))
        self.prompts.enter(torch.cat([prompt.entering for prompt in prompts]))
        self._set(z, slot_of, [slot_of[node - cache.length] for node in nodes])
        hidden = joint_hidden_states([Part(self.prompts.upper, tree, nodes, cache)])[0]
        return self.model.get_submodule("lm_head")(hidden).float().log_softmax(-1)

    def _cached(self, asked: Sequence[_Asked]) -> list[CachedPrompt]:
        self._experts.z = {}
        return self.prompts.of([one.prompt for one in asked], [one.following for one in asked])

    def _asked(self, task: Task, sample: Sample) -> _Asked:
        return _Asked(
            *self._cut(sample.prompt), list(target_tokens(self.tokenizer, task, [sample.answer])[0])
        )

    def _waiting(self, prompt: str) -> _Asked:
        """A prompt with an answer of one token, whatever it is."""
        return _Asked(*self._cut(prompt), [0])

    def _cut(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt up to where experts begin, and of the rest."""
        ids = prompt_ids(self.tokenizer, prompt)
        start = self.tokenizer.after_prompt_start(ids)
        return ids[:start], ids[start:]

    def _whole(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self.device)

    def _set(self, z: Mapping[str, Tensor], slots: list[int], wanted: list[int]) -> None:
        self._experts.z = z
        self._experts.slot = self._whole(slots).int()
        self._experts.wanted = self._whole(wanted).int()
