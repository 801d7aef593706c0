"""The fields that both kinds of completions have."""

from typing import Annotated, Any, TypeAlias

from pydantic import Field

from .body import StreamOptions, UnusedFields
from .expert_field import ExpertField, ModelName

# Looked for at every token of an answer.
_Text: TypeAlias = Annotated[str, Field(max_length=1000)]
_Texts: TypeAlias = Annotated[list[_Text], Field(max_length=64)]


class GenerationBody(UnusedFields):
    """How an answer is generated; the fields are those of OpenAI's API, and below them vLLM's.

    model: the served model, an expert, a mixture (`sst2:0.7+trec:0.3`), an alias, "auto", or "describe:" before the
        description of an expert.
    expert: an expert or a mixture, beside the served model.
    fallback: answers in place of the base where "auto" finds no expert; named as `model` is, or described.
    response_format: OpenAI's, or {"regex": ...}, {"choice": [...]}, {"grammar": ...}.
    n: answers to a prompt.
    """

    model: ModelName = "base"
    expert: ExpertField | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=10_000)] | None = None
    max_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    seed: int | None = None
    stop: _Text | _Texts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None

    add_special_tokens: bool | None = None
    bad_words: Annotated[list[_Text], Field(max_length=1000)] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    min_p: float = 0.0
    min_tokens: int = 0
    priority: int = 0
    prompt_logprobs: int | None = None
    repetition_penalty: float = 1.0
    skip_special_tokens: bool = True
    stop_token_ids: list[int] | None = None
    top_k: int | None = None

    fallback: ModelName | None = None
    kv_reuse: str = "exact"
    raw: bool = False
    template: str | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage
