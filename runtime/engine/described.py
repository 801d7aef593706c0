"""Experts that requests describe: made when they are first asked for, and forgotten when others have come."""

import threading
from collections import OrderedDict
from dataclasses import replace
from os import PathLike, fspath

from ..checkpoint.checkpoint import resolve_model
from ..describe.describer import Described, Describer
from ..describe.description import Description
from ..errors import ZweaveError
from ..experts.bank import Bank
from ..experts.mixture import DESCRIBED
from ..request import Request

# Descriptions whose experts stay registered.
_KEPT = 256


class DescribedExperts:
    """The generator of an engine, and the experts that it made for requests.

    All methods may be called from any thread; one expert is made at a time.

    model: as zweave.Engine takes it.
    """

    def __init__(self, bank: Bank, model: str | PathLike[str]) -> None:
        self._bank, self._model = bank, model
        self._describer: Describer | None = None
        self._names: OrderedDict[str, None] = OrderedDict()
        # Of the generator with what it keeps, and of the names.
        self._lock = threading.Lock()

    @property
    def has_generator(self) -> bool:
        return self._describer is not None

    def load(self, file: str | PathLike[str]) -> None:
        """Takes a generator, by its file or name; ZweaveError if it is none, or not for this model."""
        describer = Describer.load(file, fspath(self._model), resolve_model(self._model).digest())
        with self._lock:
            self._describer = describer

    def describe(self, description: Description) -> Described:
        """ZweaveError without a generator, and for what is far from all that it was trained on."""
        with self._lock:
            return _near(self._generator.describe(description.text))

    def name_of(self, description: Description) -> str:
        """The name that the expert of a description is registered under; ZweaveError without a generator."""
        with self._lock:
            return self._registered(description)

    def named(self, request: Request) -> Request:
        """The request with the names of its descriptions' experts in their place."""
        if isinstance(request.expert, Description):
            request = replace(request, expert=self.name_of(request.expert))
        if isinstance(request.fallback, Description):
            request = replace(request, fallback=self.name_of(request.fallback))
        return request

    def _registered(self, description: Description) -> str:
        generator = self._generator
        name = f"{DESCRIBED}{generator.key(description)[:32]}"
        if name not in self._bank:
            self._bank.load(name, _near(generator.describe(description.text)).expert)
        self._names[name] = None
        self._names.move_to_end(name)
        if len(self._names) > _KEPT:
            # Requests that run under it are not disturbed.
            oldest, _ = self._names.popitem(last=False)
            if oldest in self._bank:
                self._bank.unload(oldest)
        return name

    @property
    def _generator(self) -> Describer:
        if self._describer is None:
            raise ZweaveError(
                "this engine has no generator to make experts of descriptions: give it one with load_generator "
                "(docs/describe.md)"
            )
        return self._describer


def _near(found: Described) -> Described:
    """What a generator made; ZweaveError if it is a guess."""
    if found.is_far:
        raise ZweaveError(
            f"the description is far from all that the generator was trained on (nearest: {found.nearest}, "
            f"cosine {found.similarity:.2f}): describe a task of its kind (docs/describe.md), or see what "
            "zweave describe makes of it"
        )
    return found
