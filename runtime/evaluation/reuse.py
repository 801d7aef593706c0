"""What approximate reuse of the KV cache costs: accuracy, and the divergence of the answer's first token.

KL(exact || approximate) is taken over the likeliest tokens under the exact computation, and one class of all others:
never above the divergence over the whole vocabulary, and near it where the likeliest hold most of the mass.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..engine.engine import Engine
from ..experts.mixture import ExpertChoice
from ..request import MAX_LOGPROBS, Request, Result
from ..tasks import Sample, Task, answer_limit, prompt_ids
from .evaluate import interval, share_right, standard_error
from .method import answered
from .table import Cells, as_markdown, span


@dataclass(frozen=True, slots=True)
class ReuseRow:
    """One expert on one task, with prompts computed under it (exact) and by the base model (approximate).

    interval, approximate_interval: 95%, of the accuracies.
    kl: mean over the samples, in nats.
    n: samples.
    prompt_tokens: of all samples.
    reused_tokens: how many of them the approximate answers took from the cache.
    """

    task: str
    method: str
    accuracy: float
    stderr: float
    approximate_accuracy: float
    approximate_stderr: float
    interval: tuple[float, float]
    approximate_interval: tuple[float, float]
    kl: float
    n: int
    prompt_tokens: int
    reused_tokens: int


def reuse_cost(
    engine: Engine, task: Task, samples: Sequence[Sample], name: str, choice: ExpertChoice
) -> ReuseRow:
    """Answers a task's samples exactly, then approximately; in between the base model fills the cache.

    Raises ZweaveError if a request ends in an error.
    """
    prompts = [prompt_ids(engine.tokenizer, sample.prompt) for sample in samples]
    likeliest = min(MAX_LOGPROBS, engine.model.config.vocab_size - 1)
    limit = answer_limit(engine.tokenizer, task)
    requests = [
        Request(prompt, expert=choice, max_tokens=limit, stop=task.stop, logprobs=likeliest)
        for prompt in prompts
    ]
    exact = answered(engine, task, requests)
    answered(engine, task, [Request(prompt, max_tokens=1) for prompt in prompts])
    approximate = answered(
        engine,
        task,
        [
            replace(request, kv_reuse="approximate", score=tuple(_first(result)))
            for request, result in zip(requests, exact, strict=True)
        ],
    )
    shares = [
        share_right(task, samples, [result.text for result in results]) for results in (exact, approximate)
    ]
    return ReuseRow(
        task=task.name,
        method=name,
        accuracy=shares[0],
        stderr=standard_error(shares[:1], len(samples)),
        approximate_accuracy=shares[1],
        approximate_stderr=standard_error(shares[1:], len(samples)),
        interval=interval(shares[:1], len(samples)),
        approximate_interval=interval(shares[1:], len(samples)),
        kl=statistics.fmean(
            divergence(list(_first(one).values()), other.scores or [])
            for one, other in zip(exact, approximate, strict=True)
        ),
        n=len(samples),
        prompt_tokens=sum(result.prompt_tokens for result in approximate),
        reused_tokens=sum(result.reused_tokens for result in approximate),
    )


def divergence(exact: Sequence[float], approximate: Sequence[float]) -> float:
    """KL of two distributions from the natural log-probabilities of some tokens, all others taken as one class."""
    p, q = ([math.exp(value) for value in values] for values in (exact, approximate))
    known = sum(a * (x - y) for a, x, y in zip(p, exact, approximate, strict=True))
    rest_p, rest_q = 1 - math.fsum(p), 1 - math.fsum(q)
    # Where the tokens hold all of the mass, the rest of both is rounding.
    return max(0.0, known + (rest_p * math.log(rest_p / rest_q) if rest_p > 1e-9 and rest_q > 1e-9 else 0.0))


def reuse_markdown(rows: Sequence[ReuseRow]) -> str:
    """The rows as a Markdown table."""
    return as_markdown(reuse_cells(rows))


def reuse_cells(rows: Sequence[ReuseRow]) -> Cells:
    """One line for each row."""
    headings = ("task", "expert", "exact", "95%", "approximate", "95%", "KL", "reused", "n")
    lines: list[tuple[str, ...]] = [headings, ("---", "---", *["---:"] * 7)]
    for row in rows:
        figures = (
            f"{row.accuracy:.3f}",
            span(*row.interval),
            f"{row.approximate_accuracy:.3f}",
            span(*row.approximate_interval),
            f"{row.kl:.3f}",
            f"{row.reused_tokens / row.prompt_tokens:.0%}",
            str(row.n),
        )
        lines.append((row.task, row.method, *figures))
    return lines


def _first(result: Result) -> dict[int, float]:
    """The likeliest first tokens and their log-probabilities."""
    assert result.logprobs
    return dict(result.logprobs[0].top)
