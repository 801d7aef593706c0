"""The training loop: draws batches, follows the schedule, saves its state so that it can go on later."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from zweave.errors import ZweaveError
from zweave.tokenizer import Tokenizer
from zweave.train import reinforce
from zweave.train.svf import SvfLinear
from zweave.train.tasks import Sample, Task, balanced
from zweave.train.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an expert is trained.

    draws: actions a prompt, all from one forward pass; for generated answers: samples a prompt
    entropy: weight of the bonus on the label-restricted entropy, falls to 5% of it over 80% of the steps
    mass: weight of the bonus on the log of the probability that the whole vocabulary gives the labels
    max_tokens: of a generated answer, its end token included
    warmup: steps of rising learning rate; decay: share of the steps, at the end, of falling learning rate
    """

    steps: int = 40
    batch: int = 16
    lr: float = 2e-3
    draws: int = 32
    entropy: float = 0.4
    mass: float = 0.2
    max_tokens: int = 5
    warmup: int = 5
    decay: float = 0.4
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.max_tokens) < 1 or self.draws < 2:
            raise ZweaveError("steps, batch and max_tokens must be at least 1, draws at least 2")
        if not (self.lr > 0 and 0 <= self.decay <= 1 and self.clip > 0):
            raise ZweaveError("lr and clip must be positive, decay between 0 and 1")

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, linear decay."""
        rising = (step + 1) / self.warmup if step < self.warmup else 1.0
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(1.0, rising, falling)

    def entropy_at(self, step: int) -> float:
        return self.entropy * (1.0 - 0.95 * min(1.0, step / max(1.0, 0.8 * self.steps)))


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did; reward is the mean over the policy, between -1 and 1."""

    step: int
    reward: float
    lr: float
    gradient_norm: float
    seconds: float


def label_ids(tokenizer: Tokenizer, task: Task) -> Tensor:
    """Token ids [K] of the task's labels; raises ZweaveError when a label is not one token."""
    ids = [tokenizer.encode(label, special=False) for label in task.labels]
    for label, tokens in zip(task.labels, ids, strict=True):
        if len(tokens) != 1:
            raise ZweaveError(f"the label {label!r} of {task.name} is {len(tokens)} tokens, it must be one")
    return torch.tensor([tokens[0] for tokens in ids])


def batch_loss(
    model: nn.Module, tokenizer: Tokenizer, task: Task, recipe: Recipe, step: int, batch: list[Sample]
) -> tuple[Tensor, float]:
    """Loss of one batch, and the policy's mean reward."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    prompts = [tokenizer.encode(sample.prompt, special=False) for sample in batch]
    if not task.labels:
        generation = reinforce.generate(
            model,
            prompts,
            ends=tokenizer.eos_ids,
            max_tokens=recipe.max_tokens,
            generator=generator,
            samples=recipe.draws,
        )
        answers = [sample.answer for sample in batch for _ in range(recipe.draws)]
        reward = reinforce.text_reward(generation, answers, tokenizer.decode)
        advantage = reinforce.leave_one_out(reward.view(-1, recipe.draws)).flatten()
        return reinforce.generation_loss(model, generation, advantage), reward.mean().item()
    tree = TokenTree()
    leaves = [tree.add(prompt) for prompt in prompts]
    labels = label_ids(tokenizer, task)
    logits = model.get_submodule("lm_head")(tree.hidden(model)[leaves]).float()
    target = torch.tensor([task.labels.index(sample.answer) for sample in batch])
    loss = reinforce.label_loss(
        logits,
        labels,
        target,
        draws=recipe.draws,
        entropy=recipe.entropy_at(step),
        mass=recipe.mass,
        generator=generator,
    )
    hit = logits.detach()[:, labels].softmax(-1).gather(-1, target[:, None])
    return loss, (2 * hit - 1).mean().item()


def train_expert(
    model: nn.Module,
    adapted: dict[str, SvfLinear],
    tokenizer: Tokenizer,
    task: Task,
    train: list[Sample],
    recipe: Recipe,
    *,
    state: Path | None = None,
) -> Iterator[Step]:
    """Trains the z vectors of `adapted` in place, a step each time the iterator is asked.

    state: file that holds the unfinished training; a training of the same task and recipe goes on from it
    """
    parameters = [module.z for module in adapted.values()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0)
    key = json.dumps([task.name, asdict(recipe)])
    first = 0
    if state is not None and state.exists():
        saved = torch.load(state, weights_only=True)
        if saved["key"] == key:
            first = saved["step"]
            optimizer.load_state_dict(saved["optimizer"])
            for parameter, z in zip(parameters, saved["z"], strict=True):
                parameter.data.copy_(z)
    stream = balanced(train, task.labels, recipe.seed)
    batches = (list(islice(stream, recipe.batch)) for _ in range(recipe.steps))
    for step, batch in islice(enumerate(batches), first, None):
        start = time.perf_counter()
        loss, reward = batch_loss(model, tokenizer, task, recipe, step, batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip).item()
        if not math.isfinite(norm):
            raise ZweaveError(f"the gradient of step {step} is not finite: lower the learning rate")
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        optimizer.step()
        optimizer.zero_grad()
        if state is not None and ((step + 1) % 5 == 0 or step + 1 == recipe.steps):
            z = [parameter.detach() for parameter in parameters]
            unfinished = state.with_suffix(".part")
            torch.save(
                {"key": key, "step": step + 1, "z": z, "optimizer": optimizer.state_dict()}, unfinished
            )
            unfinished.replace(state)
        yield Step(step, reward, recipe.lr_at(step), norm, time.perf_counter() - start)


def accuracy(
    model: nn.Module, tokenizer: Tokenizer, samples: list[Sample], *, max_tokens: int, batch: int = 24
) -> float:
    """Share of samples whose greedy answer over the whole vocabulary equals the expected one."""
    hits = 0.0
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        prompts = [tokenizer.encode(sample.prompt, special=False) for sample in part]
        generation = reinforce.generate(model, prompts, ends=tokenizer.eos_ids, max_tokens=max_tokens)
        reward = reinforce.text_reward(generation, [sample.answer for sample in part], tokenizer.decode)
        hits += (reward > 0).sum().item()
    return hits / len(samples)
