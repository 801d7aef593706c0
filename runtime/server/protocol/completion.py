"""The body of /v1/completions."""

from .generation import GenerationBody


class CompletionBody(GenerationBody):
    """prompt: a text or its token ids, or a list of such."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]
