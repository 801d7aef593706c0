"""Experts that came over HTTP, and are kept in memory."""

import tempfile
from pathlib import Path

from ...engine.engine import Engine
from ...errors import ZweaveError
from ...experts.expert import Expert
from ..errors import ApiError

# Of a file beside its vectors: names, description, training record.
_HEADER = 1 << 20


class Uploads:
    """Takes safetensors bodies as experts, up to a number of bytes in all.

    largest: bytes that an expert file for this model can have.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine = engine
        self._most = most
        self._sizes: dict[str, int] = {}
        self.largest = _HEADER + 4 * sum(
            min(shape) for shape in engine.model.config.adapted_shapes().values()
        )

    def add(self, name: str, body: bytes) -> None:
        """Loads an expert; ZweaveError if the body is no expert of this model, ApiError if there is no room."""
        held = sum(self._sizes.values()) - self._sizes.get(name, 0)
        if held + len(body) > self._most:
            raise ApiError(
                409,
                f"the experts in memory take {held} of {self._most} bytes: delete one (DELETE /v1/experts/NAME)",
            )
        self._engine.load_expert(name, _read(body))
        self._sizes[name] = len(body)

    def remove(self, name: str) -> None:
        """Forgets that an expert came from here."""
        self._sizes.pop(name, None)


def _read(body: bytes) -> Expert:
    """An expert from the bytes of its file, which are on the disk only while they are read."""
    with tempfile.TemporaryDirectory(prefix="zweave-") as folder:
        file = Path(folder) / "body.safetensors"
        file.write_bytes(body)
        try:
            return Expert.load(file)
        except ZweaveError as error:
            raise ZweaveError(str(error).replace(f"{file}: ", "the body: ")) from None
