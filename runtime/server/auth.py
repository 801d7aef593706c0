"""Who may ask, and who may load experts."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers

from .errors import ApiError
from .settings import ServerSettings


class Keys:
    """Checks the keys of requests, given as `Authorization: Bearer KEY`."""

    def __init__(self, settings: ServerSettings) -> None:
        self._api_keys = settings.api_keys
        self._admin_key = settings.admin_key
        self._replicated = settings.replicated

    def tenant(self, headers: Headers) -> str | None:
        """The salt of the cache that a client's requests share, None without API keys; ApiError for a stranger."""
        if not self._api_keys:
            return None
        key = _bearer(headers)
        if not _is_one_of(key, self._api_keys):
            raise ApiError(
                401,
                "this server wants an API key: send it as Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        return hashlib.sha256(f"zweave-tenant\n{key}".encode()).hexdigest()

    def check_admin(self, headers: Headers) -> None:
        """Raises ApiError unless the admin key is given, and where it could change one replica alone."""
        if self._replicated:
            raise ApiError(
                403,
                "an expert that comes over HTTP would reach one replica alone: put NAME.safetensors into the "
                "directory of experts, which all of them read",
            )
        if self._admin_key is None:
            raise ApiError(
                403, "this server loads no experts over HTTP: start it with --admin-key to allow it"
            )
        if not _is_one_of(_bearer(headers), (self._admin_key,)):
            raise ApiError(
                401,
                "this needs the admin key: send it as Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )


def _bearer(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _is_one_of(key: str, known: Iterable[str]) -> bool:
    """Compares with every key in full, so that the time tells nothing."""
    found = [hmac.compare_digest(key.encode(), one.encode()) for one in known]
    return bool(key) and any(found)
