"""The file of a trained generator: its weights, what it was trained for, and the tasks that it knows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ZweaveError, shortened
from ..io.json_text import parse_json
from ..io.tensor_file import open_tensors, save_tensors
from ..text.prompt_template import PromptTemplate
from .generator import Generator, GeneratorConfig

FORMAT = "zweave-generator-3"
_KNOWN = "known"
_JSON = ("config", "ranks", "training", "known_tasks")


@dataclass(frozen=True, slots=True, eq=False)
class TrainedGenerator:
    """A generator and all that it needs to be used.

    encoder: the name of what turns its descriptions into token states.
    base_digest: of the weights that it makes experts for (`Checkpoint.digest`).
    template: the prompt that its experts are trained on.
    known_tasks: names of the tasks that it was trained on.
    known: [tasks, width], the mean vector of each one's descriptions, of length 1.
    training: a JSON object that says how it was made.
    """

    generator: Generator
    encoder: str
    base_digest: str
    template: PromptTemplate
    known_tasks: Sequence[str]
    known: Tensor
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 of everything that changes what it makes of a description."""
        hashed = hashlib.sha256(
            f"{FORMAT} {self.encoder} {self.base_digest} {self.template.to_json()}".encode()
        )
        for name, part in sorted(self.generator.state_dict().items()):
            hashed.update(f"\n{name} {tuple(part.shape)}\n".encode())
            hashed.update(part.detach().cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()

    def save(self, path: Path, half: bool = False) -> None:
        """Writes the file, whole or not at all; ZweaveError if it cannot be written.

        half: rounds the weights to half precision: half the file, and another digest.
        """
        dtype = torch.float16 if half else torch.float32
        tensors = {
            name: part.detach().to(dtype).contiguous() for name, part in self.generator.state_dict().items()
        }
        fields = {
            "config": asdict(self.generator.config),
            "ranks": self.generator.ranks,
            "training": dict(self.training),
            "known_tasks": list(self.known_tasks),
        }
        metadata = {name: json.dumps(value) for name, value in fields.items()} | {
            "format": FORMAT,
            "encoder": self.encoder,
            "base_digest": self.base_digest,
            "prompt_template": self.template.to_json(),
        }
        save_tensors(path, tensors | {_KNOWN: self.known.half()}, metadata)

    @classmethod
    def load(cls, path: Path) -> "TrainedGenerator":
        """Reads and checks a file; ZweaveError for any other; nothing in it is executed."""
        with open_tensors(path) as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
        try:
            return cls._of(metadata, tensors)
        except ZweaveError as error:
            raise ZweaveError(f"{path}: {error}") from None

    @classmethod
    def _of(cls, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> "TrainedGenerator":
        if metadata.get("format") != FORMAT:
            raise ZweaveError(
                f"the file's format is {shortened(metadata.get('format'))}, a generator's is {FORMAT!r}"
            )
        try:
            read = {name: parse_json(metadata[name]) for name in _JSON}
            generator = Generator(GeneratorConfig(**read["config"]), read["ranks"])
            known = tensors[_KNOWN].float()
            generator.load_state_dict(
                {name: part.float() for name, part in tensors.items() if name != _KNOWN}
            )
            if known.shape != (len(read["known_tasks"]), generator.config.width) or not len(known):
                raise ValueError("other tasks are known than there are vectors of")
            float(read["training"].get("far", 0))
            known_tasks = list(map(str, read["known_tasks"]))
            encoder, digest = metadata["encoder"], metadata["base_digest"]
            template = PromptTemplate.from_json(metadata["prompt_template"])
        except ZweaveError:
            raise
        # Fields of another kind, or missing, and tensors of other shapes fail each in a way of its own.
        except Exception as error:
            raise ZweaveError(f"is not a whole generator ({type(error).__name__}): train it again") from None
        if not all(part.isfinite().all() for part in tensors.values()):
            raise ZweaveError("holds NaN or infinity: train it again")
        return cls(generator.eval(), encoder, digest, template, known_tasks, known, read["training"])


def known_vectors(vectors: Tensor) -> Tensor:
    """[tasks, width] of vectors [tasks, wordings, width]: their means, of length 1."""
    return torch.nn.functional.normalize(vectors.mean(1), dim=-1)
