"""The workload served by others: transformers, PEFT, our experts in transformers, and the paper's procedure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zweave.decomposition import Decomposition
from zweave.experts import Expert

from ..reference_model import Changes, load_transformers

LORA_RANK = 16
# B of a random adapter. It changes the answers as much as the random experts do.
LORA_STD = 0.02


@torch.inference_mode()
def generate(model: Any, prompts: Sequence[Sequence[int]], new: int, **options: object) -> list[list[int]]:
    """Greedy answers of `new` tokens; the prompts are equally long, so nothing is padded."""
    tokens = torch.tensor(prompts, device=model.device)
    output = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new,
        do_sample=False,
        use_cache=True,
        **options,
    )
    return output[:, tokens.shape[1] :].tolist()


class Recompose:
    """The paper's procedure: rebuild W' for an expert, answer its requests, then the next expert.

    As Sakana's code does it, without its diagonal matrix, which would double the cost: all factors in memory
    in the model's dtype, W' written into the model that transformers runs.
    """

    def __init__(self, directory: Path, decomposition: Decomposition, dtype: torch.dtype) -> None:
        self.model = load_transformers(directory, dtype)
        self._factors = {}
        for name in decomposition.names:
            u, sigma, vt = decomposition.factors(name)
            self._factors[name] = (u.to(dtype), sigma.clone(), vt.to(dtype))

    @torch.inference_mode()
    def become(self, expert: Expert) -> None:
        for name, z in expert.z.items():
            u, sigma, vt = self._factors[name]
            scale = (sigma * z).to(u.dtype)
            torch.mm(u * scale, vt, out=self.model.get_submodule(name).weight.data)

    def __call__(
        self, prompts: Sequence[Sequence[int]], experts: Sequence[Expert], new: int
    ) -> list[list[int]]:
        """Answers; prompt i is under expert i mod E."""
        answers: list[list[int]] = [[] for _ in prompts]
        for first, expert in enumerate(experts):
            mine = range(first, len(prompts), len(experts))
            self.become(expert)
            for index, answer in zip(
                mine, generate(self.model, [prompts[i] for i in mine], new), strict=True
            ):
                answers[index] = answer
        return answers


class AttachedExperts:
    """Our experts inside transformers' model, one a prompt; without experts its base."""

    def __init__(self, directory: Path, experts: Sequence[Expert], dtype: torch.dtype) -> None:
        from zweave.integrations.transformers import attach

        self._model = load_transformers(directory, dtype)
        self._names = [f"expert{index}" for index in range(len(experts))]
        self._attached = attach(self._model, dict(zip(self._names, experts, strict=True)))

    def __call__(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        """Answers; prompt i is under expert i mod E."""
        names = [
            self._names[index % len(self._names)] if self._names else None for index in range(len(prompts))
        ]
        with self._attached.use(names):
            return generate(self._model, prompts, new)


class PeftLora:
    """PEFT's mixed batch: LoRA adapters of rank 16 on all linears, one named for each prompt."""

    def __init__(
        self, directory: Path, modules: Sequence[str], adapters: int, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        from peft import LoraConfig, get_peft_model

        targets = sorted({module.rpartition(".")[2] for module in modules})
        config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=targets)
        self._modules = modules
        self._names = [f"adapter{index}" for index in range(adapters)]
        self._model = get_peft_model(load_transformers(directory, dtype), config, self._names[0])
        for name in self._names[1:]:
            self._model.add_adapter(name, config)
        self._model.to(device, dtype).eval()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self._model.named_parameters():
            if "lora_B" in name:
                # B is zero before training, which would leave the answers as they are.
                values = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(values * LORA_STD)

    def __call__(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        """Answers; prompt i is under adapter i mod E."""
        names = [self._names[index % len(self._names)] for index in range(len(prompts))]
        return generate(self._model, prompts, new, adapter_names=names)

    def changes(self, adapter: int, base: Mapping[str, Tensor]) -> Changes:
        """W + B A for the reference model, whose base weights are given."""
        name = self._names[adapter]
        changes = {}
        for module in self._modules:
            layer: Any = self._model.get_submodule(f"base_model.model.{module}")
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            changes[module] = base[module] + b.detach().float().cpu() @ a.detach().float().cpu()
        return changes


class TransformersSteps:
    """A batch after prefill, decoded step by step by transformers with its own cache."""

    @torch.inference_mode()
    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        output = model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        self._tokens = [output.logits[:, -1].argmax(-1)]

    @torch.inference_mode()
    def step(self) -> None:
        output = self._model(self._tokens[-1][:, None], past_key_values=self._cache, use_cache=True)
        self._tokens.append(output.logits[:, -1].argmax(-1))

    def answers(self) -> list[list[int]]:
        """Token ids so far."""
        return torch.stack(self._tokens, dim=1).tolist()
