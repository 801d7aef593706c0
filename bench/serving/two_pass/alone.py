"""Single requests in two passes: random words in the chat template under random experts, by every strategy."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import torch

from zweave.dispatch.early_classifier import EarlyClassifier
from zweave.engine import Engine
from zweave.errors import ZweaveError
from zweave.request import Request, Result

from ...harness.harness import Outcome, Pace, Provider, find, measure
from ...harness.report import Row
from ..fixtures import Fixtures
from ..reference_model import REGRET_LIMITS
from ..workload import FIRST_PLAIN_TOKEN
from .paper_procedure import PaperProcedure
from .strategies import FIRST, NAMED, TASKS, as_prompt, computed_twice, dispatchers

REUSES = ("after_prompt", "first_layer", "always")
REFERENCE = "reference"
# Of the reference's work, each timed by itself.
PARTS = ("first pass", "rebuild", "second pass")


class Alone:
    """Serves single requests. No prompt comes twice, so that only what all have in common is found in the cache.

    layer: the layer that the hidden strategy reads. Its classifier is random: any choice costs the same.
    """

    def __init__(self, fixtures: Fixtures, engine: Engine, layer: int, new: int) -> None:
        self.fixtures, self.engine, self.new = fixtures, engine, new
        self._numbers = count()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(len(TASKS), fixtures.config.hidden_size, generator=generator)
        classifier = EarlyClassifier(TASKS, layer, weight, torch.zeros(len(TASKS)))
        names = {reuse: [f"{reuse}-{index}" for index in range(len(TASKS))] for reuse in REUSES}
        # All of them before any prompt: states are kept for experts that are loaded.
        for reuse in REUSES:
            for index, name in enumerate(names[reuse]):
                engine.load_expert(name, fixtures.expert(reuse, index))
        self._dispatchers = {reuse: dispatchers(engine, classifier, names[reuse]) for reuse in REUSES}

    def check(self, length: int) -> None:
        """Raises ZweaveError for a length at which a request does not fit."""
        tokenizer = self.engine.tokenizer
        least = len(tokenizer.user_opening) + len(tokenizer.assistant_header) + 1
        longest = max(len(self._question(self.prompt(length))), length + self.new) if length >= least else 0
        if not least <= length or longest > self.engine.max_length:
            raise ZweaveError(
                f"--prompts: {length} tokens do not fit: at least {least}, and with the answer and the question at "
                f"most {self.engine.max_length}"
            )

    def prompt(self, length: int) -> list[int]:
        """Token ids, different on every call."""
        tokenizer, vocabulary = self.engine.tokenizer, self.fixtures.config.vocab_size
        generator = torch.Generator().manual_seed(next(self._numbers))
        size = length - len(tokenizer.user_opening) - len(tokenizer.assistant_header)
        low = min(FIRST_PLAIN_TOKEN, vocabulary - 1)
        words = torch.randint(low, vocabulary, (size,), generator=generator).tolist()
        return [*tokenizer.user_opening, *words, *tokenizer.assistant_header]

    def rows(self, length: int, reference: PaperProcedure, pace: Pace) -> list[Row]:
        """The rows of a prompt length: all strategies and the reference, timed in turn."""
        case = Case(self, length)
        providers = [
            case.provider(reuse, strategy)
            for reuse in REUSES
            for strategy in (NAMED, *self._dispatchers[reuse])
        ]
        outcomes = measure([*providers, *case.reference(reference)], pace)
        found = [outcome for outcome in outcomes if not outcome.provider.name.startswith(REFERENCE)]
        parts = [outcome for outcome in outcomes if outcome.provider.name.startswith(REFERENCE)]
        second = parts[-1].seconds
        rows = [case.row(outcome, outcomes) for outcome in found]
        row = case.reference_row(parts, find(outcomes, NAMED, reuse="always"))
        rows.append(row | {"dtype": reference.dtype})
        return [row | {"vs_reference": _over(row["seconds"], second)} for row in rows]

    def answer(self, prompt: Sequence[int], reuse: str, strategy: str) -> Result:
        dispatcher = self._dispatchers[reuse].get(strategy)
        (result,) = self.engine.generate(
            Request(
                prompt,
                expert=f"{reuse}-0" if dispatcher is None else "auto",
                dispatcher=dispatcher,
                max_tokens=self.new,
                ignore_eos=True,
            )
        )
        if result.error is not None:
            raise ZweaveError(result.error)
        return result

    def twice(self, prompt: Sequence[int], reuse: str, strategy: str, result: Result) -> int:
        """Tokens of the prompt that both passes computed."""
        dispatcher = self._dispatchers[reuse].get(strategy)
        return 0 if dispatcher is None else computed_twice(dispatcher, as_prompt(self.engine, prompt), result)

    def _question(self, prompt: Sequence[int]) -> Sequence[int]:
        """What the model reads under the strategy that puts the question first, as the paper does."""
        probe = self._dispatchers["always"][FIRST].probe(as_prompt(self.engine, prompt))
        return getattr(probe, "tokens", ())

    def question(self, length: int) -> Sequence[int]:
        return self._question(self.prompt(length))


class Case:
    """Prompts of one length."""

    def __init__(self, alone: Alone, length: int) -> None:
        self._alone, self._length = alone, length
        self._twice: dict[tuple[str, str], int] = {}

    def provider(self, reuse: str, strategy: str) -> Provider:
        def call() -> object:
            return self._alone.answer(self._alone.prompt(self._length), reuse, strategy)

        is_named = strategy == NAMED
        error = partial(self._regret if is_named else self._differing, reuse, strategy)
        limit = REGRET_LIMITS[self._alone.fixtures.torch_dtype] if is_named else 0.0
        labels: dict[str, object] = {"strategy": strategy, "reuse": reuse, "prompt_tokens": self._length}
        return Provider(strategy, [call], error, limit, labels=labels)

    def reference(self, reference: PaperProcedure) -> list[Provider]:
        """The parts of the paper's procedure; none depends on the outcome of another."""
        alone, length = self._alone, self._length
        calls: tuple[Callable[[], object], ...] = (
            lambda: reference.classify(alone.question(length)),
            lambda: reference.rebuild(0),
            lambda: reference.answer(alone.prompt(length), alone.new),
        )

        def regret(second: bool) -> float:
            if not second:
                question = alone.question(length)
                return alone.fixtures.regret([question], [reference.classify(question)])
            reference.rebuild(0)
            prompt = alone.prompt(length)
            return alone.fixtures.regret([prompt], [reference.answer(prompt, alone.new)], "always", 1)

        limit = REGRET_LIMITS[alone.fixtures.torch_dtype]
        # The second pass shows whether the weights were rebuilt rightly.
        errors: tuple[Callable[[], float], ...] = (
            partial(regret, False),
            lambda: 0.0,
            partial(regret, True),
        )
        return [
            Provider(f"{REFERENCE}, {part}", [call], error, limit)
            for part, call, error in zip(PARTS, calls, errors, strict=True)
        ]

    def row(self, outcome: Outcome, outcomes: Sequence[Outcome]) -> Row:
        reuse, strategy = str(outcome.provider.labels["reuse"]), outcome.provider.name
        named = find(outcomes, NAMED, reuse=reuse)
        second = None if named is None else named.seconds
        slower = _over(outcome.seconds, second)
        return outcome.row() | {
            "second_pass_seconds": second,
            "first_pass_share": None if slower is None else slower - 1,
            "oracle_ratio": _over(second, outcome.seconds),
            "prompt_tokens_recomputed": self._twice.get((reuse, strategy), 0),
        }

    def reference_row(self, parts: Sequence[Outcome], named: Outcome | None) -> Row:
        """The row of the whole procedure, which computes the text in both passes."""
        bad = next((part for part in parts if part.status != "ok"), parts[-1])
        row = bad.row() | {"provider": REFERENCE, "strategy": REFERENCE, "reuse": "always"}
        row |= {"prompt_tokens": self._length, "prompt_tokens_recomputed": self._text_tokens()}
        first, rebuild, second = (part.seconds for part in parts)
        if first is None or rebuild is None or second is None:
            return row | {"seconds": None}
        seconds = first + rebuild + second
        return row | {
            "seconds": seconds,
            "second_pass_seconds": second,
            "rebuild_seconds": rebuild,
            "first_pass_share": first / second,
            "oracle_ratio": _over(None if named is None else named.seconds, seconds),
        }

    def _text_tokens(self) -> int:
        prompt = as_prompt(self._alone.engine, self._alone.prompt(self._length))
        return prompt.text_end - prompt.tokenizer.user_text_start(prompt.tokens, prompt.text_end)

    def _regret(self, reuse: str, strategy: str) -> float:
        """The regret of an answer under the named expert."""
        fixtures, prompt = self._alone.fixtures, self._alone.prompt(self._length)
        answer = self._alone.answer(prompt, reuse, strategy).token_ids
        end = self._alone.engine.tokenizer.after_prompt_start(prompt)
        changes = fixtures.reference_model.svf(
            fixtures.expert("first_layer" if reuse == "first_layer" else "always", 0)
        )
        adapted_from = end if reuse == "after_prompt" else 0
        return fixtures.mean_regret([prompt], [answer], lambda _: changes, 1, adapted_from)

    def _differing(self, reuse: str, strategy: str) -> float:
        """Share of an answer's tokens that differ from those under the same expert when named, computed anew."""
        prompt = self._alone.prompt(self._length)
        found = self._alone.answer(prompt, reuse, strategy)
        self._twice[reuse, strategy] = self._alone.twice(prompt, reuse, strategy, found)
        again = Request(
            prompt, expert=found.expert, max_tokens=self._alone.new, ignore_eos=True, salt="checked"
        )
        (named,) = self._alone.engine.generate(again)
        pairs = list(zip(found.token_ids, named.token_ids, strict=True))
        return sum(one != other for one, other in pairs) / len(pairs)


def _over(one: object, other: object) -> float | None:
    return one / other if isinstance(one, float) and isinstance(other, float) else None
