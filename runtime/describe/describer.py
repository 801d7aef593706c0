"""Experts from descriptions: a trained generator with its encoder."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from ..errors import ZweaveError
from ..experts.expert import Expert
from .bundled import generator_file
from .description import Description
from .encoders import Encoder, open_encoder
from .generator_file import TrainedGenerator
from .token_states import TokenStates

# Descriptions whose experts are kept: 400 kB each for a model of 135M.
_KEPT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """What a generator makes of a description.

    expert: acts after the prompt; its words are those that the generator was trained on.
    nearest: the known task whose descriptions are most like it.
    similarity: the cosine to them.
    is_far: whether an everyday prompt could be as near, so that the expert is a guess.
    """

    expert: Expert
    nearest: str
    similarity: float
    is_far: bool


class Describer:
    """Turns descriptions into experts of one model; the latest are kept.

    trained: the generator.
    encoder: of its name.
    """

    def __init__(self, trained: TrainedGenerator, encoder: Encoder) -> None:
        if (encoder.name, encoder.width) != (trained.encoder, trained.generator.config.width):
            raise ZweaveError(
                f"the generator reads states of {trained.encoder} ({trained.generator.config.width} wide), not of "
                f"{encoder.name} ({encoder.width})"
            )
        self.trained, self._encoder = trained, encoder
        self._digest = trained.digest
        self._kept: OrderedDict[str, Described] = OrderedDict()

    @classmethod
    def load(cls, path: str | PathLike[str], model: str, base_digest: str) -> "Describer":
        """Reads a generator for a model; ZweaveError if it is none, or for other weights.

        path: a file, or the name of one that comes with zweave.
        model: as zweave.Engine takes it.
        """
        path = generator_file(path)
        trained = TrainedGenerator.load(path)
        if trained.base_digest != base_digest:
            raise ZweaveError(
                f"{path}: the generator was trained for other weights (base {trained.base_digest[:12]!r}, the model's "
                f"is {base_digest[:12]!r}): give one of zweave train-describe for this model"
            )
        return cls(trained, open_encoder(trained.encoder, model))

    def key(self, description: Description) -> str:
        """Names what the generator makes of a description: sha256 of both."""
        return hashlib.sha256(f"{self._digest}\n{description.text}".encode()).hexdigest()

    def describe(self, text: str) -> Described:
        """The expert of a description; ZweaveError for what can be none."""
        text = Description(text).text
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        states = self._encoder.encode([text])
        similar = (self.trained.known @ states.mean()[0]).max(0)
        made = self._expert(text, {name: part[0] for name, part in self.z(states).items()})
        likeness = float(similar.values)
        nearest = self.trained.known_tasks[int(similar.indices)]
        found = Described(made, nearest, likeness, likeness < self.trained.training.get("far", -1.0))
        self._kept[text] = found
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found

    @torch.no_grad()
    def z(self, texts: TokenStates) -> dict[str, Tensor]:
        """[descriptions, R] of each adapted matrix, rounded as a half-precision file stores it."""
        made = self.trained.generator(texts)
        return {name: (part - 1).half().float() + 1 for name, part in made.items()}

    def states(self, texts: Sequence[str]) -> TokenStates:
        """What `z` takes."""
        return self._encoder.encode(texts)

    def _expert(self, text: str, z: dict[str, Tensor]) -> Expert:
        return Expert(
            z={name: part.contiguous() for name, part in z.items()},
            base_digest=self.trained.base_digest,
            scope="after_prompt",
            first_layer=self.trained.training.get("first_layer", 0),
            description=text,
            training={"generator": self._digest, "described": self.key(Description(text))},
            prompt_template=self.trained.template,
        )
