"""What a server is told when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ZweaveError
from ..experts.mixture import ExpertChoice, check_name
from ..validation import check_integer, is_number


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Raises ZweaveError for what no server can work with.

    model_name: under which the base model is served, beside "base".
    aliases: further model names, each for an expert or a mixture.
    experts: a directory of expert files and LoRAs; NAME.safetensors, or the LoRA in the directory NAME, is loaded when
        NAME is first asked for.
    api_keys: one of them is needed by whoever asks; none: everybody may. Clients of different keys share no cache.
    admin_key: for loading and unloading experts over HTTP, which nobody can without it.
    max_waiting: requests that are taken up at once; more get status 429.
    request_timeout: seconds that a request may take.
    drain_timeout: seconds that unfinished requests have when the server is told to stop.
    max_body: bytes of a JSON body.
    max_bodies: bytes of the bodies of all requests that are read or worked on; more get status 429.
    max_prompts: prompts of a body.
    max_uploads: bytes of experts that are kept in memory because they came over HTTP.
    replicated: it is one of several servers behind one address, so that no expert comes or goes over HTTP: the others
        would not know.
    """

    model_name: str
    aliases: Mapping[str, ExpertChoice] = field(default_factory=dict)
    experts: Path | None = None
    api_keys: tuple[str, ...] = ()
    admin_key: str | None = None
    max_waiting: int = 512
    request_timeout: float = 600.0
    drain_timeout: float = 30.0
    max_body: int = 8 << 20
    max_bodies: int = 256 << 20
    max_prompts: int = 128
    max_uploads: int = 1 << 30
    replicated: bool = False

    def __post_init__(self) -> None:
        for name in self.aliases:
            check_name(name)
        if self.experts is not None and not self.experts.is_dir():
            raise ZweaveError(f"--experts: {self.experts} is no directory: make it, or leave the option out")
        for name in ("max_waiting", "max_body", "max_bodies", "max_prompts"):
            check_integer(name, getattr(self, name), 1)
        check_integer("max_uploads", self.max_uploads, 0)
        for name in ("request_timeout", "drain_timeout"):
            if not (is_number(getattr(self, name)) and getattr(self, name) > 0):
                raise ZweaveError(f"{name} must be seconds above 0, not {getattr(self, name)!r}")
        if any(
            not key for key in (*self.api_keys, *([self.admin_key] if self.admin_key is not None else []))
        ):
            raise ZweaveError("a key must not be empty: leave the option out, or give a long random text")
        if self.admin_key is not None and self.admin_key in self.api_keys:
            raise ZweaveError(
                "the admin key is an API key too: every client could load experts; give another"
            )
