"""The experts attached to a model: loading, use, training and saving."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...checkpoint.module_name import layer_of, replace_module
from ...errors import ZweaveError, shortened
from ...experts.bank import Bank
from ...experts.expert import Expert
from ...experts.mixture import Mixture, check_name
from .calls import Calls
from .linear import AttachedLinear, Target, share_hooks
from .router import Router
from .rows import Rows

# A name, a mixture as {name: weight}, or None for the base model.
Choice: TypeAlias = Any
ExpertFile: TypeAlias = Expert | str | PathLike[str]


class Attached:
    """Experts attached to a model; made by `attach`.

    Outside of `use` the model is the base model, or the expert that `learn` named last. Like the model it serves one
    thread at a time: inside a `use` another thread may run the model, but not enter a `use`.

    model: the model, whose linears are replaced.
    bank: holds the experts.
    router: tells the linears which rows to use.
    digest: of the weights that the experts are for.
    targets: the linears that are replaced, by name.
    linears: what replaces them, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: Bank,
        router: Router,
        digest: str,
        targets: Mapping[str, Target],
        linears: Mapping[str, AttachedLinear],
    ) -> None:
        self._model, self._bank, self._router, self._digest = model, bank, router, digest
        self._linears = dict(linears)
        # First layer of each expert that learns, by name.
        self._learnt = router.learnt
        self._is_attached = True
        self._frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._replaced = {path: target.module for target in targets.values() for path in target.paths}
        for name, target in targets.items():
            for path in target.paths:
                replace_module(model, path, linears[name])
        self._calls = Calls(model, router)

    @property
    def names(self) -> list[str]:
        """Names of the experts; those that learn come last."""
        return self._bank.experts() + list(self._learnt)

    @property
    def base_digest(self) -> str:
        """Digest of the weights that the experts are for: it opens their `Decomposition`."""
        return self._digest

    def load(self, name: str, expert: ExpertFile) -> None:
        """Registers an expert under a name; an expert of that name is replaced.

        expert: an expert, its file, or the name of one that comes with zweave.
        Raises ZweaveError if it cannot be read or does not fit the model.
        """
        self._check_attached()
        if name in self._learnt:
            raise ZweaveError(f"the expert {name!r} learns: freeze it first")
        self._bank.load(name, expert)

    def unload(self, name: str) -> None:
        """Forgets an expert; a `use` that holds it keeps it."""
        self._check_attached()
        if name in self._learnt:
            self._drop(name)
        else:
            self._bank.unload(name)

    @contextmanager
    def use(
        self, choice: Choice | Sequence[Choice], prompt_lengths: int | Sequence[int] | Tensor | None = None
    ) -> Iterator[None]:
        """A context in which the model's forward passes use these experts.

        A backward pass may stand outside of it, with gradient checkpointing, too (use_reentrant=False, or it raises).

        choice: one for all rows of a batch, or a list with one for each row. Each is a name, a mixture {name: weight}
            or {name: [weight of each layer]}, or None for the base model. Where `generate` gives a prompt several rows
            (beams, returned sequences), each has the prompt's expert.
        prompt_lengths: for experts that act after the prompt only, tokens of each row's prompt without padding, or one
            number for all: the expert acts from a prompt's last token on. By default `generate` says.
        Raises ZweaveError for an unknown name, and if more experts are in use than the bank has slots.
        """
        self._check_attached()
        choices = list(choice) if isinstance(choice, list | tuple) else [choice]
        if not choices:
            raise ZweaveError("the list of experts is empty: name one for each row")
        rows = self._rows(choices, prompt_lengths)
        try:
            with self._router.using(rows):
                yield
        finally:
            if rows is not None:
                rows.close()

    def learn(self, name: str, first_layer: int = 0) -> list[nn.Parameter]:
        """Makes an expert trainable: gradients flow to its z, while the model's own parameters are frozen.

        Outside of `use` the model runs under it, so that trainers need not know of it. `save` writes it, `freeze` ends
        its training.

        name: a loaded expert, whose training goes on, or a new name, whose z start at 1.
        first_layer: it adapts nothing below this layer.
        Returns its z, [R] float32 each, in the model's order.
        Raises ZweaveError if it learns already, asks for renormalisation, acts after the prompt only, or no linear is
        left from `first_layer` on.
        """
        self._check_attached()
        check_name(name)
        if name in self._learnt:
            raise ZweaveError(f"the expert {name!r} learns already")
        if "." in name:
            raise ZweaveError(f"the expert {name!r} cannot learn: parameters have no dots in their names")
        start = self._bank.expert(name) if name in self._bank.experts() else None
        if start is not None and start.scope != "always":
            raise ZweaveError(f"the expert {name!r} acts after the prompt only: train it with zweave train")
        if start is not None and start.renormalise:
            raise ZweaveError(f"the expert {name!r} asks for renormalisation, which is not learnt through")
        first_layer = max(first_layer, start.first_layer if start else 0)
        mine = {n: linear for n, linear in self._linears.items() if layer_of(n) >= first_layer}
        if not mine:
            raise ZweaveError(f"the model has no layer {first_layer}: lower first_layer")
        for module, linear in mine.items():
            z = torch.ones_like(linear.sigma)
            if start is not None and module in start.z:
                z.copy_(start.z[module])
            linear.z[name] = nn.Parameter(z)
        if start is not None:
            self._bank.unload(name)
        self._learnt[name] = first_layer
        self._set_otherwise(name)
        return [linear.z[name] for linear in mine.values()]

    def freeze(self, name: str) -> None:
        """Ends an expert's training: it stays loaded as it is, and is served like any other."""
        expert = self.expert(name)
        if name in self._learnt:
            self._drop(name)
            self._bank.load(name, expert)

    def expert(self, name: str, description: str = "") -> Expert:
        """The expert in its current state; ZweaveError if there is none of that name, or its z are not finite."""
        self._check_attached()
        if name not in self._learnt:
            return self._bank.expert(name)
        z: dict[str, Tensor] = {
            module: linear.z[name].detach().float().cpu().clone()
            for module, linear in self._linears.items()
            if name in linear.z
        }
        return Expert(z, self._digest, first_layer=self._learnt[name], description=description)

    def save(self, name: str, path: str | PathLike[str], half: bool = True, description: str = "") -> None:
        """Writes an expert file (docs/experts.md), which the engine and other models of these weights load.

        half: stores z - 1 in float16, an error of 2e-4 of z - 1.
        description: of an expert that learns.
        Raises ZweaveError as `expert` does, and if the file cannot be written.
        """
        self.expert(name, description).save(Path(path), half=half)

    def detach(self) -> None:
        """Restores the replaced modules, so that the model is what it was, to the bit. Unsaved training is lost.

        Backward passes come first where gradients are checkpointed: what they compute again would be the base model,
        and torch raises its CheckpointError.
        Raises ZweaveError inside a `use`.
        """
        self._check_attached()
        if self._router.depth:
            raise ZweaveError("the experts are in use: leave `use` before you detach them")
        self._calls.remove()
        for path, module in self._replaced.items():
            share_hooks(self._model.get_submodule(path), module)
            replace_module(self._model, path, module)
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._linears.clear()
        self._replaced.clear()
        self._is_attached = False

    def _rows(self, choices: Sequence[Choice], prompt_lengths: object = None) -> Rows | None:
        """The rows of these choices, which hold slots of the bank until they are closed; None if all are the base."""
        lengths = None if prompt_lengths is None else _lengths(prompt_lengths)
        slots, learning, after_prompt = [], [], []
        with ExitStack() as held:
            for choice in choices:
                learns = isinstance(choice, str) and choice in self._learnt
                mixture = None if learns else Mixture.parse(choice)
                for name in mixture.names if mixture else ():
                    if name in self._learnt:
                        raise ZweaveError(f"the expert {name!r} learns: freeze it before you mix it")
                resolved = self._bank.resolve(mixture)
                slots.append(self._bank.acquire(resolved))
                held.callback(self._bank.release, slots[-1])
                learning.append(choice if learns else None)
                after_prompt.append(resolved.scope == "after_prompt")
            if not any(slots) and not any(learning):
                return None
            tables = self._bank.tables
            modes, device, release = tables.modes[:, slots], tables.scale.device, held.pop_all().close
            return Rows(slots, modes, learning, device, after_prompt, lengths, release)

    def _set_otherwise(self, name: str | None) -> None:
        self._router.otherwise = self._rows([name])
        if not self._router.depth:
            self._router.rows = self._router.otherwise

    def _drop(self, name: str) -> None:
        if self._router.depth:
            raise ZweaveError(f"the expert {name!r} is in use: leave `use` first")
        del self._learnt[name]
        for linear in self._linears.values():
            if name in linear.z:
                del linear.z[name]
        self._set_otherwise(next(reversed(self._learnt), None))

    def _check_attached(self) -> None:
        if not self._is_attached:
            raise ZweaveError("the experts were detached from the model: attach them again")


def _lengths(given: object) -> Tensor:
    """Prompt lengths [rows] int64 of one number or several; ZweaveError unless they are whole and above 0."""
    try:
        lengths = torch.as_tensor(given).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        lengths = torch.zeros(0)
    if not len(lengths) or lengths.dtype.is_floating_point or lengths.min() < 1:
        raise ZweaveError(f"prompt_lengths must be whole numbers of at least 1, not {shortened(given)}")
    return lengths.long()
