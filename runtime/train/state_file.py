"""The state of an unfinished training: written whole or not at all."""

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from ..errors import ZweaveError
from ..io.atomic_write import atomic_write


def digest_of(*parts: object) -> str:
    """sha256 of all that a training follows from, as JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def save_state(path: Path, state: dict[str, Any]) -> None:
    # In memory first: torch's own writer ends in an error of another kind where the disk is full.
    packed = BytesIO()
    torch.save(state, packed)
    with atomic_write(path) as temporary:
        temporary.write_bytes(packed.getbuffer())


def load_state(path: Path, digest: str) -> dict[str, Any]:
    """The state; ZweaveError for a file that is none, or of a training with another digest."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["digest"]
    # A file that is no state fails in any way that torch can.
    except Exception as error:
        raise ZweaveError(f"{path} cannot be gone on from ({type(error).__name__}): delete it") from None
    if found != digest:
        raise ZweaveError(f"{path} is of another training: delete it, or give another place")
    return state
