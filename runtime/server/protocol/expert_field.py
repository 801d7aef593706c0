"""How a body names an expert beside `model`."""

from typing import TypeAlias

from pydantic import model_validator

from .body import Body

Weight: TypeAlias = float | list[float]


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


ExpertField: TypeAlias = str | dict[str, Weight] | list[ExpertPart]
