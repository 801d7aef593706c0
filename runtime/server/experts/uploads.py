"""Experts that came over HTTP, and are kept in memory."""

from threading import Lock

from ...engine.engine import Engine
from ...errors import ZweaveError
from ...experts.expert import Expert
from ..errors import ApiError

# Of a file beside its vectors: names, description, training record.
_HEADER = 1 << 20


class Uploads:
    """Takes safetensors bodies as experts, up to a number of bytes in all. Its methods may be called from any thread.

    largest: bytes that an expert file for this model can have.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine = engine
        self._most = most
        self._sizes: dict[str, int] = {}
        self._lock = Lock()
        self.largest = _HEADER + 4 * sum(
            min(shape) for shape in engine.model.config.adapted_shapes().values()
        )

    def add(self, name: str, body: bytes) -> Expert:
        """Loads an expert; ZweaveError if the body is no expert of this model, ApiError if there is no room."""
        try:
            expert = Expert.from_bytes(body)
        except ZweaveError as error:
            raise ZweaveError(f"the body: {error}") from None
        with self._lock:
            held = sum(self._sizes.values()) - self._sizes.get(name, 0)
            if held + len(body) > self._most:
                raise ApiError(
                    409,
                    f"the experts in memory take {held} of {self._most} bytes: "
                    "delete one (DELETE /v1/experts/NAME)",
                )
            self._engine.load_expert(name, expert)
            self._sizes[name] = len(body)
        return expert

    def unload(self, name: str) -> None:
        """Forgets an expert, wherever it came from; ZweaveError if there is none."""
        with self._lock:
            self._engine.unload_expert(name)
            self._sizes.pop(name, None)

    def note_replaced(self, name: str) -> None:
        """An expert of this name came from elsewhere."""
        with self._lock:
            self._sizes.pop(name, None)
