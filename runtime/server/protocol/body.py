"""What all bodies have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A JSON object of known fields; numbers are not read from texts."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(Body):
    """include_usage: a last chunk tells the tokens of the prompt and the answer."""

    include_usage: bool = False


class UnusedFields(Body):
    """What OpenAI's clients send and no answer here depends on."""

    metadata: Any = None
    parallel_tool_calls: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None
