"""What every kind of response tells: tokens used, and how the answer came about."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...request import Result
from ...text.tool_calls import ToolCall


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """The fields that a response begins with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(results: Sequence[Result], prompts: int) -> dict[str, Any]:
    """Tokens of some prompts and all their answers.

    prompts: how many there are; results go prompt by prompt, and a prompt counts once, however many answers it has.
    """
    each = max(1, len(results) // max(1, prompts))
    asked = sum(result.prompt_tokens for result in results[::each])
    answered = sum(len(result.token_ids) for result in results)
    cached = sum(result.reused_tokens for result in results[::each])
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finish_reason(result: Result) -> str:
    """As OpenAI names it."""
    return "length" if result.finish_reason == "length" else "stop"


def tool_call(index: int, call: ToolCall) -> dict[str, Any]:
    """A call of a tool, as messages and chunks have it."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": index, "id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}


def how(result: Result) -> dict[str, Any]:
    """zweave's own field of a choice: the expert, what was reused, and how "auto" was decided."""
    told: dict[str, Any] = {
        "expert": result.expert,
        "reuse": result.reuse,
        "reused_tokens": result.reused_tokens,
        "resumed_tokens": result.resumed_tokens,
    }
    if result.asked is not None:
        told["asked"] = str(result.asked)
    if result.label is not None:
        told["label"] = result.label
    if result.dispatch is not None:
        told["dispatch"] = asdict(result.dispatch)
    if result.prompt_logprobs is not None:
        told["prompt_logprobs"] = [
            None if token is None else asdict(token) for token in result.prompt_logprobs
        ]
    return told
