"""Rows of a step: a text and an answer, each under an expert of its own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...checkpoint import resolve_model
from ...decomposition import decompose
from ...errors import ZweaveError
from ...tasks.render import prompt_ids, target_tokens
from ...tasks.task import Sample, Task
from ...text.tokenizer import Tokenizer
from ...train.forward import Part, joint_hidden_states
from ...train.run import load_model
from .prompt_cache import PromptCache, joined
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
    def open(cls, model: str, dtype: torch.dtype, first_layer: int = 0) -> "RowModel":
        """model: as zweave.Engine takes it. Raises ZweaveError if it cannot be opened, or has no such layer."""
        checkpoint = resolve_model(model)
        if not 0 <= first_layer < checkpoint.config.num_layers:
            raise ZweaveError(
                f"first_layer {first_layer}: the model has layers 0 to {checkpoint.config.num_layers - 1}"
            )
        module = load_model(checkpoint, dtype).requires_grad_(False)
        experts, ranks = adapt_rows(module, decompose(checkpoint).factors, first_layer)
        return cls(module, Tokenizer(checkpoint.directory), experts, ranks, first_layer, checkpoint.digest())

    @property
    def key(self) -> str:
        """What its numbers follow from: the weights, their dtype, and the first layer that experts change."""
        return f"{self._digest} {next(self.model.parameters()).dtype} {self.first_layer}"

    def remember(self, samples: Iterable[tuple[Task, Sequence[Sample]]]) -> None:
        """Computes prompts before they are asked for, in one order: whoever goes on later has the same bits."""
        self._experts.z = {}
        for task, some in samples:
            asked = [self._asked(task, sample) for sample in some]
            self.prompts.of([prompt for prompt, _, _ in asked], [rest for _, rest, _ in asked])

    def scored(self, rows: Sequence[Row], z: Mapping[str, Tensor]) -> Scored:
        """One pass over the rows' last headers and answers.

        z: [slots, R] float32 of each adapted matrix.
        """
        asked = [self._asked(row.task, row.sample) for row in rows]
        self._experts.z = {}
        prompts = self.prompts.of([prompt for prompt, _, _ in asked], [rest for _, rest, _ in asked])
        tree, leaves, cache = joined(prompts)
        nodes: list[int] = []
        targets: list[int] = []
        owner: list[int] = []
        slots: list[int] = []
        for index, (row, (_, rest, answer), leaf) in enumerate(zip(rows, asked, leaves, strict=True)):
            tree.add(rest, leaf)
            slots += [row.slot] * len(rest)
            nodes += range(len(tree) - len(answer), len(tree))
            targets += answer
            owner += [index] * len(answer)
        self.prompts.enter(torch.cat([prompt.entering for prompt in prompts]))
        self._set(z, slots, [slots[node - cache.length] for node in nodes])
        hidden = joint_hidden_states([Part(self.prompts.upper, tree, nodes, cache)])[0]
        log_policy = self.model.get_submodule("lm_head")(hidden).float().log_softmax(-1)
        target, rows_of = torch.tensor(targets), torch.tensor(owner)
        log_probs = log_policy.gather(1, target[:, None])[:, 0]
        misses = (log_policy.argmax(-1) != target).float()
        zero = torch.zeros(len(rows))
        return Scored(zero.index_add(0, rows_of, log_probs), zero.index_add(0, rows_of, misses) == 0)

    def _asked(self, task: Task, sample: Sample) -> tuple[list[int], list[int], list[int]]:
        """Token ids of a prompt up to where experts begin, of what follows, and of the answer."""
        ids = prompt_ids(self.tokenizer, sample.prompt)
        start = self.tokenizer.after_prompt_start(ids)
        answer = target_tokens(self.tokenizer, task, [sample.answer])[0]
        return ids[:start], [*ids[start:], *answer[:-1]], list(answer)

    def _set(self, z: Mapping[str, Tensor], slots: list[int], wanted: list[int]) -> None:
        self._experts.z = z
        self._experts.slot = torch.tensor(slots, dtype=torch.int32)
        self._experts.wanted = torch.tensor(wanted, dtype=torch.int32)
