"""Experts attached to models of transformers."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digests import of_tensors
from models import SIZES, fill, tiny, tiny_experts

from zweave import Expert
from zweave.integrations.transformers import attach

CHOICES: list[Any] = [None, "a", "leading", {"a": 0.5, "b": [0.25, 0.0, 1.0]}, "late", "sum", None, "a"]


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield f"{name}/rows", partial(rows, dtype)
        yield f"{name}/learning", partial(learning, dtype)
    yield "float32/gpt2", gpt2


def _llama(dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=dtype).eval()


def _tokens(count: int) -> torch.Tensor:
    return torch.randint(3, 96, (count, 9), generator=torch.Generator().manual_seed(3))


def rows(dtype: torch.dtype) -> Any:
    """A batch whose rows have experts of their own: logits, and what is generated; then the model alone."""
    model = _llama(dtype)
    before = model(_tokens(2)).logits
    attached = attach(model, {name: e for name, e in tiny_experts("llama").items() if e.scope == "always"})
    found: dict[str, Any] = {"names": attached.names}
    with torch.no_grad():
        for choice in (CHOICES, "a", {"late": 2.0}, None):
            count = len(choice) if isinstance(choice, list) else 3
            with attached.use(choice):
                found[f"{choice} logits"] = of_tensors(model(_tokens(count)).logits)
                answer = model.generate(_tokens(count), max_new_tokens=6, do_sample=False)
                found[f"{choice} tokens"] = answer[:, 9:].tolist()
    attached.detach()
    found["detached"] = of_tensors(before, model(_tokens(2)).logits)
    return found


def learning(dtype: torch.dtype) -> Any:
    """Two steps of an expert that learns beside one that does not; the file that it is saved in."""
    model = _llama(dtype)
    attached = attach(model, {"a": tiny_experts("llama")["a"]})
    parameters = attached.learn("new", first_layer=1)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    found = []
    for _ in range(2):
        with attached.use(["new", "a", "new", None]):
            loss = model(_tokens(4), labels=_tokens(4)).loss
            loss.backward()
        found.append([of_tensors(loss), of_tensors(*(z.grad for z in parameters))])
        optimizer.step()
        optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        attached.save("new", Path(folder) / "new.safetensors")
        saved = Expert.load(Path(folder) / "new.safetensors")
    attached.freeze("new")
    with torch.no_grad(), attached.use(["new", {"new": 0.5, "a": 0.5}]):
        found.append(of_tensors(model(_tokens(2)).logits))
    return [*found, saved.digest]


def gpt2() -> Any:
    """A model whose matrices lie the other way round."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {k: v for k, v in SIZES.items() if k not in ("intermediate_size", "num_key_value_heads")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes)).eval()
    fill(model)
    attached = attach(model)
    for parameter in attached.learn("new"):
        parameter.data.mul_(torch.linspace(0.5, 1.5, parameter.numel()))
    attached.freeze("new")
    with torch.no_grad(), attached.use(["new", None, {"new": 0.5}]):
        return of_tensors(model(_tokens(3)).logits)
