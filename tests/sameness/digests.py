"""What is kept of results, tensors and steps: exact, and as plain JSON."""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

import torch
from torch import Tensor

from zweave import Dispatch, Engine, Request, Result


def plain(value: Any) -> Any:
    """The value as JSON gives it back, so that recorded and computed values compare."""
    return json.loads(json.dumps(value))


def short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def of_tensors(*tensors: Tensor) -> str:
    """Digest of the tensors' shapes, dtypes and bits."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        hashed.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
        hashed.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return hashed.hexdigest()[:16]


def of_result(result: Result) -> dict[str, Any]:
    """All fields of a result; log-probabilities as a digest for each token."""
    logits = [
        short(b"".join(struct.pack("<qd", *pair) for pair in ((t.token_id, t.logprob), *t.top.items())))
        for t in result.logprobs or ()
    ]
    fields = {
        "token_ids": result.token_ids,
        "logits": logits,
        "text": result.text,
        "expert": result.expert,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "error": result.error,
        "reuse": [result.reuse, result.reused_tokens, result.resumed_tokens],
        "scores": result.scores,
        "dispatch": result.dispatch and of_dispatch(result.dispatch),
    }
    return {name: value for name, value in fields.items() if value not in (None, [])}


def of_dispatch(dispatch: Dispatch) -> dict[str, Any]:
    """All fields but the seconds that it took."""
    fields = ("label", "probabilities", "mixture", "confidence", "tokens", "error")
    return {name: getattr(dispatch, name) for name in fields}


def serve(
    engine: Engine, requests: Iterable[Request], cancel: Mapping[int, int] | None = None
) -> dict[str, Any]:
    """Answers requests as one batch: results, what each step computed, and the engine's counters.

    cancel: request -> the step after which it is cancelled.
    """
    steps: list[str] = []
    # Spans as a set: in which order a step computes its sequences changes no result.
    engine.observer = lambda trace: steps.append(_of_step([astuple(span) for span in trace.spans]))
    ids = [engine.add(request) for request in requests]
    results: dict[int, Result] = {}
    pieces: dict[int, list[Any]] = {request_id: [] for request_id in ids}
    step = 0
    while engine.has_work:
        for delta in engine.step():
            pieces[delta.request_id].append([delta.text, delta.token_ids])
            if delta.result is not None:
                results[delta.request_id] = delta.result
        for index, last in (cancel or {}).items():
            if last == step:
                engine.cancel(ids[index])
        step += 1
    engine.observer = None
    return {
        "results": [of_result(results[i]) for i in ids],
        "deltas": short(json.dumps([pieces[i] for i in ids]).encode()),
        "steps": steps,
        "stats": asdict(engine.stats()),
    }


def _of_step(spans: Sequence[tuple[Any, ...]]) -> str:
    """How many spans and tokens a step has, and their digest. spans: of an engine's ids, the count as fifth field."""
    ordered = sorted(json.dumps(span) for span in spans)
    return f"{len(spans)} {sum(span[4] for span in spans)} {short(json.dumps(ordered).encode())}"


def first_difference(before: Any, now: Any, path: str = "") -> str | None:
    """Where two plain values first differ, and how; None if they do not."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            found = first_difference(before.get(key), now.get(key), f"{path}.{key}")
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list):
        for index, (one, other) in enumerate(zip(before, now, strict=False)):
            found = first_difference(one, other, f"{path}[{index}]")
            if found:
                return found
        return f"{path}: {len(before)} -> {len(now)} entries" if len(before) != len(now) else None
    # NaN is the same as NaN.
    if json.dumps(before) == json.dumps(now):
        return None
    return f"{path}: {json.dumps(before)[:200]} -> {json.dumps(now)[:200]}"
