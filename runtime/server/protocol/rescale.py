"""The body of /v1/requests/ID/rescale."""

from pydantic import model_validator

from .body import Body
from .expert_field import ExpertField


class RescaleBody(Body):
    """expert or model: who answers from now on, as in the bodies of completions; one of the two."""

    expert: ExpertField | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "RescaleBody":
        if (self.expert is None) == (self.model is None):
            raise ValueError("give an expert or a model, one of the two")
        return self
