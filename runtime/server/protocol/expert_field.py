"""How a body names an expert beside `model`."""

from typing import Annotated, TypeAlias

from pydantic import Field, model_validator

from .body import Body

# More than any model has layers, and than any mixture wants experts.
Weight: TypeAlias = float | Annotated[list[float], Field(max_length=1024)]
_Some = Field(max_length=256)
# Room for a mixture of several experts with long names.
ModelName: TypeAlias = Annotated[str, Field(max_length=10_000)]


class ExpertPart(Body):
    """An expert of a mixture, as lists of adapters with static scales are written elsewhere.

    id, name: one of the two, the expert's name.
    scale: its weight, or one for each layer.
    """

    id: str | None = None
    name: str | None = None
    scale: Weight = 1.0

    @model_validator(mode="after")
    def _one_name(self) -> "ExpertPart":
        if (self.id is None) == (self.name is None):
            raise ValueError("give the expert's id")
        return self

    @property
    def expert(self) -> str:
        """The name."""
        return str(self.id if self.name is None else self.name)


ExpertField: TypeAlias = ModelName | Annotated[dict[str, Weight], _Some] | Annotated[list[ExpertPart], _Some]
