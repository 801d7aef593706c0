"""What a model's router is told of the model's calls: whose rows a batch has, and where a prompt ends."""

import inspect
from collections.abc import Mapping, Sequence
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn

from .prompts import Prompts
from .router import Router


class Calls:
    """Tells a router of a model's calls and of those of its `generate`, until `remove`."""

    def __init__(self, model: nn.Module, router: Router) -> None:
        self._model, self._router = model, router
        self._names = list(inspect.signature(model.forward).parameters)
        self._handles = (
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
        )
        self._generate = vars(model).get("generate")
        if hasattr(model, "generate"):
            model.generate = Generate(model, router)  # type: ignore[assignment]

    def remove(self) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()
        if hasattr(self._model, "generate"):
            del self._model.generate
        if self._generate is not None:
            self._model.generate = self._generate

    @torch.compiler.disable
    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._router.begin({**dict(zip(self._names, args, strict=False)), **kwargs})

    @torch.compiler.disable
    def _end(self, *_: object) -> None:
        self._router.end()


class Generate:
    """`model.generate`, which tells the router its prompts: only here may a prompt have several rows."""

    def __init__(self, model: nn.Module, router: Router) -> None:
        generate: Any = model.generate
        self._generate = generate
        self._router = router
        self._main_input = getattr(model, "main_input_name", "input_ids")
        update_wrapper(self, generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._router.generating(self._prompts(args, kwargs)):
            return self._generate(*args, **kwargs)

    def _prompts(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Prompts:
        names = ("inputs", "input_ids", "inputs_embeds", self._main_input)
        for given in (*args[:1], *(kwargs.get(name) for name in names)):
            if isinstance(given, Tensor) and given.dim() > 1:
                return Prompts(given.shape[0], given.shape[1])
        # Without a prompt `generate` begins one row with the begin token.
        return Prompts(1, 1)
