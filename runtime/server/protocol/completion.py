"""The body of /v1/completions."""

from .generation import GenerationBody


class CompletionBody(GenerationBody):
    """prompt: a text or its token ids, or a list of such.

    echo: the prompt stands before its answers; with `max_tokens` of 0 it stands alone.
    """

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool | None = None
    logprobs: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def is_echo_alone(self) -> bool:
        """Whether the prompt is wanted and no answer."""
        return bool(self.echo) and self.max_tokens == 0
