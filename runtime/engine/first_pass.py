"""The first passes under way: what each of them waits for, and what becomes of its request."""

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from ..dispatcher import Dispatch, Dispatcher, Prompt, ReadScores, ReadState, probe_method
from ..errors import ZweaveError
from ..experts.bank import Bank
from ..experts.mixture import Mixture
from ..request import Request
from ..scheduler.pooling import Pooling
from ..scheduler.scheduler import Scheduler
from ..scheduler.sequence import Sequence
from .call_pool import Call, Calls
from .config import EngineConfig
from .input_processor import RequestReader


@dataclass(slots=True, eq=False)
class FirstPass:
    """sequence: the request's own. reading: another one, computed for its scores.

    looked: what is to be found out is known. tokens: computed for the first pass alone.
    """

    sequence: Sequence
    dispatcher: Dispatcher
    prompt: Prompt
    started: float
    looked: bool = False
    reading: Sequence | None = None
    tokens: int = 0


class FirstPasses:
    """Requests whose expert is not known yet. Both passes are ordinary sequences of the scheduler's: one that reads
    scores has the number of its request, so that it comes in the same place, and is gone before that starts; one that
    reads states is the request's own, which then goes on.
    """

    def __init__(
        self, config: EngineConfig, reader: RequestReader, scheduler: Scheduler, bank: Bank, layers: int
    ) -> None:
        self._config = config
        self._reader = reader
        self._scheduler = scheduler
        self._bank = bank
        self._layers = layers
        self._passes: dict[int, FirstPass] = {}
        self._calls: Calls[FirstPass] = Calls(config.dispatch_timeout)

    def add(self, sequence: Sequence, dispatcher: Dispatcher) -> None:
        """Takes up a sequence that the scheduler does not know yet."""
        tokenizer = self._reader.tokenizer
        prompt = Prompt(
            tuple(sequence.token_ids),
            tokenizer.after_prompt_start(sequence.token_ids),
            tokenizer,
        )
        found = FirstPass(sequence, dispatcher, prompt, time.perf_counter())
        self._passes[sequence.request_id] = found
        self._call(found, partial(_look, dispatcher, prompt))

    def remove(self, sequence: Sequence) -> None:
        """Forgets a request, and what was computed for it only."""
        found = self._passes.pop(sequence.request_id, None)
        if found is not None and found.reading is not None:
            self._scheduler.remove(found.reading)

    def advance(self) -> list[tuple[Sequence, str]]:
        """Goes on with what has become known; returns the sequences that have failed, with the reason."""
        failed = []
        while calls := self._calls.finished():
            for call in calls:
                reason = self._settle(call)
                if reason is not None:
                    failed.append((call.owner.sequence, reason))
        return failed

    def wait(self, seconds: float) -> None:
        """Waits so long, or less, for a dispatcher that blocks."""
        self._calls.wait(seconds)

    def is_early(self, sequence: Sequence) -> bool:
        """Whether a sequence is in a first pass that ends below the top, and whose dispatcher chooses at once."""
        found = self._passes.get(sequence.request_id)
        return found is not None and sequence.exit_layer is not None and not _is_blocking(found.dispatcher)

    def reads(self, sequence: Sequence) -> bool:
        """Whether a sequence is one that reads scores."""
        found = self._passes.get(sequence.request_id)
        return found is not None and found.reading is sequence

    def has_read(self, sequence: Sequence, error: str | None) -> bool:
        """Told of every sequence that has ended: whether it was one that read scores."""
        if not self.reads(sequence):
            return False
        found = self._passes[sequence.request_id]
        found.reading = None
        found.tokens = sequence.num_prompt_tokens - (sequence.num_cached_tokens or 0)
        if error is not None:
            self._call(found, partial(_raise, error), blocking=False)
        else:
            self._choose(found, sequence.scores)
        return True

    def has_pooled(self, sequence: Sequence) -> None:
        """Told when a sequence's states are all read."""
        assert sequence.pooling is not None
        found = self._passes[sequence.request_id]
        self._choose(found, sequence.pooling.mean())
        if _is_blocking(found.dispatcher):
            # Others may have its place meanwhile.
            self._scheduler.remove(sequence)

    def _call(self, found: FirstPass, function: partial[object], blocking: bool | None = None) -> None:
        if blocking is None:
            blocking = _is_blocking(found.dispatcher)
        self._calls.submit(found, function, blocking)

    def _choose(self, found: FirstPass, seen: Seq[float] | Tensor | None) -> None:
        self._call(found, partial(_choose, found.dispatcher, found.prompt, seen))

    def _settle(self, call: Call[FirstPass]) -> str | None:
        found = call.owner
        if self._passes.get(found.sequence.request_id) is not found:
            return None
        try:
            if call.error is not None:
                raise ZweaveError(call.error)
            if isinstance(call.result, Dispatch):
                self._bind(found, call.result)
            else:
                self._start(found, call.result)
        except ZweaveError as error:
            return self._fail(found, str(error))
        return None

    def _start(self, found: FirstPass, look: object) -> None:
        """Has computed what the dispatcher wants to know."""
        sequence = found.sequence
        if look is None:
            self._choose(found, None)
        elif isinstance(look, ReadScores):
            request = Request(
                look.tokens, expert=look.expert, max_tokens=1, salt=sequence.request.salt, score=look.score
            )
            found.reading = self._reader.sequence(request, sequence.request_id)
            self._scheduler.add(found.reading)
        elif isinstance(look, ReadState):
            if not (isinstance(look.layer, int) and 1 <= look.layer <= self._layers):
                raise ZweaveError(f"a layer must be from 1 to {self._layers}, not {look.layer!r}")
            sequence.pooling = self._pooling(look, found)
            self._scheduler.add(sequence)

    def _pooling(self, look: ReadState, found: FirstPass) -> Pooling:
        """A prompt is computed before it is known what answers it up to the layer that is read; where all candidates
        act on the prompt, up to the first that one of them adapts, if that is higher; and whole, where they do not and
        the dispatcher takes its time."""
        stop = max(1, found.prompt.text_end)
        candidates = []
        for choice in look.candidates:
            try:
                bound = self._bank.resolve(Mixture.parse(choice))
            except ZweaveError:  # told if it is chosen
                continue
            candidates += [bound] if bound.parts else []
        approximate = found.sequence.request.kv_reuse == "approximate"
        if approximate or not candidates or any(bound.scope == "after_prompt" for bound in candidates):
            exit_layer = None if _is_blocking(found.dispatcher) else look.layer
            return Pooling(look.layer, stop, exit_layer, prompt_kv_reusable=True)
        exit_layer = max(look.layer, min(bound.first_layer for bound in candidates))
        return Pooling(look.layer, stop, exit_layer, prompt_kv_reusable=False)

    def _bind(self, found: FirstPass, dispatch: Dispatch) -> None:
        """Has the request answered under what was chosen; ZweaveError if there is no such expert."""
        sequence = found.sequence
        mixture = self._bank.resolve(Mixture.parse(dispatch.mixture))
        adapted_from = self._reader.adapted_from(mixture, sequence.token_ids, sequence.request.kv_reuse)
        pooling, stays = sequence.pooling, False
        if pooling is not None:
            found.tokens = pooling.tokens - (sequence.num_cached_tokens or 0) - sequence.num_resumed_tokens
            # What was computed whole is found in the cache.
            stays = pooling.exit_layer is None and sequence.keeps_kv_valid(mixture, adapted_from)
        del self._passes[sequence.request_id]
        stays |= self._scheduler.bind(sequence, mixture, adapted_from) and pooling is not None
        tokens = 0 if stays else found.tokens
        seconds = time.perf_counter() - found.started
        sequence.dispatch = replace(dispatch, tokens=tokens, seconds=seconds)

    def _fail(self, found: FirstPass, reason: str) -> str | None:
        """Has the base answer, or returns the reason for which the request ends."""
        dispatch = Dispatch(confidence=0.0, error=reason)
        if self._config.on_dispatch_error == "base":
            self._bind(found, dispatch)
            return None
        found.sequence.dispatch = dispatch
        return reason


def _is_blocking(dispatcher: Dispatcher) -> bool:
    return bool(getattr(dispatcher, "blocking", True))


def _look(dispatcher: Dispatcher, prompt: Prompt) -> object:
    method = probe_method(dispatcher)
    if method is None:
        raise ZweaveError(f"the dispatcher has no method probe: {type(dispatcher).__name__}")
    probe = method(prompt)
    if probe is not None and not isinstance(probe, ReadScores | ReadState):
        raise ZweaveError(
            f"the dispatcher probes {type(probe).__name__}: it must be ReadScores, ReadState or None"
        )
    return probe


def _choose(dispatcher: Dispatcher, prompt: Prompt, seen: Seq[float] | Tensor | None) -> object:
    choice = dispatcher.choose(prompt, seen)
    if not isinstance(choice, Dispatch):
        raise ZweaveError(f"the dispatcher chooses {type(choice).__name__}: it must be zweave.Dispatch")
    return choice


def _raise(reason: str) -> object:
    raise ZweaveError(reason)
