"""First passes: requests whose expert is still unknown, from the dispatcher's probe to its choice."""

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from ..dispatcher import Dispatch, Dispatcher, Prompt, ReadScores, ReadState, StateClassifier, probe_method
from ..errors import ZweaveError
from ..experts.bank import Bank
from ..experts.mixture import Mixture
from ..experts.resolved_mixture import ResolvedMixture
from ..request import Request
from ..scheduler.scheduler import Scheduler
from ..scheduler.sequence import Sequence
from .call_pool import CallPool, PendingCall
from .config import EngineConfig
from .input_processor import InputProcessor
from .state_reading import StateReading


@dataclass(slots=True, eq=False)
class FirstPass:
    """A request that waits for its expert.

    sequence: the request's own, that of its first answer.
    others: those of the further answers, which begin when the expert is chosen.
    prompt: what the dispatcher sees of it.
    started: seconds of `time.perf_counter` when the request was taken up.
    score_sequence: another sequence, computed for its scores; None if the dispatcher asked for none, or it is done.
    num_tokens: tokens computed for the first pass alone.
    """

    sequence: Sequence
    dispatcher: Dispatcher
    prompt: Prompt
    started: float
    others: Seq[Sequence] = ()
    score_sequence: Sequence | None = None
    num_tokens: int = 0


class FirstPassManager:
    """Runs first passes: asks the dispatcher for a probe, schedules it, hands over the evidence and binds the choice.

    Both kinds of probe are ordinary sequences of the scheduler. One that reads scores is a sequence of its own; it
    takes the request's id, and so its place in line, and has ended before the request's sequence starts. So the two
    are told apart by identity, not by id. One that reads states is the request's sequence itself, which then goes on;
    where the device chooses (scheduler/choice.py), without a stop.
    """

    def __init__(
        self,
        config: EngineConfig,
        input_processor: InputProcessor,
        scheduler: Scheduler,
        bank: Bank,
        reading: StateReading,
    ) -> None:
        self._config = config
        self._input_processor = input_processor
        self._scheduler = scheduler
        self._bank = bank
        self._reading = reading
        self._passes: dict[int, FirstPass] = {}
        self._calls: CallPool[FirstPass] = CallPool(config.dispatch_timeout)

    def add(self, sequence: Sequence, dispatcher: Dispatcher, others: Seq[Sequence] = ()) -> None:
        """Starts the first pass of a sequence that is not in the scheduler yet.

        others: those of further answers to the request.
        """
        tokenizer = self._input_processor.tokenizer
        prompt = Prompt(
            tuple(sequence.token_ids),
            tokenizer.after_prompt_start(sequence.token_ids),
            tokenizer,
        )
        first_pass = FirstPass(sequence, dispatcher, prompt, time.perf_counter(), others)
        self._passes[sequence.request_id] = first_pass
        self._call(first_pass, partial(_probe, dispatcher, prompt))

    def remove(self, sequence: Sequence) -> None:
        """Forgets a request, and the sequence that was computed for its scores."""
        first_pass = self._passes.pop(sequence.request_id, None)
        if first_pass is None:
            return
        self._calls.drop(first_pass)
        if first_pass.score_sequence is not None:
            self._scheduler.remove(first_pass.score_sequence)

    def advance(self) -> list[tuple[Sequence, str]]:
        """Handles the calls that are done; returns the sequences that have failed, with the reason."""
        failed = []
        while calls := self._calls.poll():
            for call in calls:
                reason = self._on_call_done(call)
                if reason is not None:
                    failed += [(sequence, reason) for sequence in (call.owner.sequence, *call.owner.others)]
        return failed

    def wait(self, seconds: float) -> None:
        """Returns when a blocking call is done, or after so many seconds."""
        self._calls.wait(seconds)

    def exits_early(self, sequence: Sequence) -> bool:
        """Whether a sequence's first pass leaves out upper layers, and its dispatcher chooses at once."""
        first_pass = self._passes.get(sequence.request_id)
        if first_pass is None or sequence.exit_layer is None:
            return False
        return not _is_blocking(first_pass.dispatcher)

    def reads_scores(self, sequence: Sequence) -> bool:
        """Whether a sequence is computed for its scores alone."""
        first_pass = self._passes.get(sequence.request_id)
        return first_pass is not None and first_pass.score_sequence is sequence

    def on_scored(self, sequence: Sequence, error: str | None) -> bool:
        """Called when any sequence ends: returns whether it was computed for its scores, and takes them."""
        if not self.reads_scores(sequence):
            return False
        first_pass = self._passes[sequence.request_id]
        first_pass.score_sequence = None
        first_pass.num_tokens = sequence.num_prompt_tokens - (sequence.kv.num_cached_tokens or 0)
        if error is not None:
            self._call(first_pass, partial(_raise, error), blocking=False)
        else:
            self._choose(first_pass, sequence.scores)
        return True

    def on_pooled(self, sequence: Sequence) -> None:
        """Called when the states of a sequence's prompt are all pooled."""
        assert sequence.pooling is not None
        first_pass = self._passes[sequence.request_id]
        self._choose(first_pass, sequence.pooling.mean())
        if _is_blocking(first_pass.dispatcher):
            # Others can run while the dispatcher takes its time.
            self._scheduler.remove(sequence)

    def on_chosen(self, sequence: Sequence, slot: int, probabilities: Seq[float]) -> str | None:
        """Called when a choice of the device lands; returns the reason if the request fails."""
        first_pass, choice = self._passes[sequence.request_id], sequence.choice
        assert choice is not None
        call = PendingCall(first_pass, partial(_report, choice.classifier, probabilities), blocking=False)
        call.run()
        chosen = call.result
        dispatch = chosen if isinstance(chosen, Dispatch) else Dispatch(confidence=0.0, error=call.error)
        sequence.dispatch = replace(dispatch, seconds=time.perf_counter() - first_pass.started)
        mixture = choice.mixture_in(slot) or self._bank.resolve(None)
        adapted_from = self._input_processor.adapted_from(mixture, sequence.token_ids)
        self._scheduler.settle(sequence, mixture, adapted_from, slot)
        del self._passes[sequence.request_id]
        base_answers = self._config.on_dispatch_error == "base" and slot == 0
        return None if base_answers else dispatch.error

    def _on_call_done(self, call: PendingCall[FirstPass]) -> str | None:
        """Schedules the probe or binds the choice that a call returned; returns the reason if the request fails."""
        first_pass = call.owner
        if self._passes.get(first_pass.sequence.request_id) is not first_pass:
            return None
        try:
            if call.error is not None:
                raise ZweaveError(call.error)
            if isinstance(call.result, Dispatch):
                self._bind_choice(first_pass, call.result)
            else:
                self._schedule_probe(first_pass, call.result)
        except ZweaveError as error:
            return self._fail(first_pass, str(error))
        return None

    def _call(self, first_pass: FirstPass, function: partial[object], blocking: bool | None = None) -> None:
        if blocking is None:
            blocking = _is_blocking(first_pass.dispatcher)
        self._calls.submit(first_pass, function, blocking)

    def _choose(self, first_pass: FirstPass, evidence: Seq[float] | Tensor | None) -> None:
        self._call(first_pass, partial(_choose, first_pass.dispatcher, first_pass.prompt, evidence))

    def _schedule_probe(self, first_pass: FirstPass, probe: object) -> None:
        """Schedules what the dispatcher wants to know."""
        sequence = first_pass.sequence
        if probe is None:
            self._choose(first_pass, None)
        elif isinstance(probe, ReadScores):
            request = Request(
                probe.tokens,
                expert=probe.expert,
                max_tokens=1,
                salt=sequence.request.salt,
                score=probe.score,
                priority=sequence.request.priority,
            )
            first_pass.score_sequence = self._input_processor.process(request, sequence.request_id)
            self._scheduler.add(first_pass.score_sequence)
        elif isinstance(probe, ReadState):
            self._reading.begin(sequence, first_pass.prompt, probe, _is_blocking(first_pass.dispatcher))
            self._scheduler.add(sequence)

    def _bind_choice(self, first_pass: FirstPass, dispatch: Dispatch) -> None:
        """Binds the request to the chosen mixture, or its fallback; ZweaveError if there is no such expert."""
        sequence = first_pass.sequence
        if dispatch.mixture is None and dispatch.error is None and sequence.fallback is not None:
            mixture = sequence.fallback
            dispatch = replace(dispatch, mixture=sequence.request.named_fallback)
        else:
            mixture = self._bank.resolve(Mixture.parse(dispatch.mixture))
        whole = self._in_own_words(sequence, mixture)
        adapted_from = self._input_processor.adapted_from(
            mixture, (whole or sequence).token_ids, sequence.request.kv_reuse
        )
        pooling, is_kept = sequence.pooling, False
        if pooling is not None:
            num_found = (sequence.kv.num_cached_tokens or 0) + sequence.kv.num_resumed_tokens
            first_pass.num_tokens = pooling.tokens - num_found
            # The answer finds in the prefix cache what was computed in all layers.
            is_kept = pooling.exit_layer is None and sequence.keeps_kv_valid(mixture, adapted_from)
        del self._passes[sequence.request_id]
        if whole is not None:
            is_kept = False
            self._scheduler.remove(sequence)
            sequence.take_prompt(whole)
        keeps_running = self._scheduler.bind(sequence, mixture, adapted_from)
        is_kept |= keeps_running and pooling is not None
        seconds = time.perf_counter() - first_pass.started
        sequence.dispatch = replace(dispatch, tokens=0 if is_kept else first_pass.num_tokens, seconds=seconds)
        for other, fresh in zip(first_pass.others, self._input_processor.further(sequence), strict=True):
            other.take_prompt(fresh)
            other.dispatch = sequence.dispatch
            self._scheduler.bind(other, mixture, adapted_from)

    def _in_own_words(self, sequence: Sequence, mixture: ResolvedMixture) -> Sequence | None:
        """The request as the chosen expert is asked, if that has words of its own and the prompt is a bare text."""
        if mixture.prompt_template is None:
            return None
        whole = self._input_processor.process(sequence.request, sequence.request_id, mixture)
        return None if whole.asked is None else whole

    def _fail(self, first_pass: FirstPass, reason: str) -> str | None:
        """Falls back to the base model, or returns the reason if the request is to end with an error."""
        dispatch = Dispatch(confidence=0.0, error=reason)
        if self._config.on_dispatch_error == "base":
            self._bind_choice(first_pass, dispatch)
            return None
        for sequence in (first_pass.sequence, *first_pass.others):
            sequence.dispatch = dispatch
        return reason


def _is_blocking(dispatcher: Dispatcher) -> bool:
    return bool(getattr(dispatcher, "blocking", True))


def _probe(dispatcher: Dispatcher, prompt: Prompt) -> object:
    method = probe_method(dispatcher)
    if method is None:
        raise ZweaveError(f"the dispatcher has no method probe: {type(dispatcher).__name__}")
    probe = method(prompt)
    if probe is not None and not isinstance(probe, ReadScores | ReadState):
        raise ZweaveError(
            f"the dispatcher looks at {type(probe).__name__}: it must be ReadScores, ReadState or None"
        )
    return probe


def _choose(dispatcher: Dispatcher, prompt: Prompt, evidence: Seq[float] | Tensor | None) -> object:
    return _checked(dispatcher.choose(prompt, evidence))


def _report(classifier: StateClassifier, probabilities: Seq[float]) -> object:
    return _checked(classifier.dispatch(probabilities))


def _checked(choice: object) -> Dispatch:
    if not isinstance(choice, Dispatch):
        raise ZweaveError(f"the dispatcher chooses {type(choice).__name__}: it must be zweave.Dispatch")
    return choice


def _raise(reason: str) -> object:
    raise ZweaveError(reason)
