"""The responses that are on their way, for requests about them."""

from collections.abc import Callable

from ...errors import shortened
from ..errors import ApiError


class Running:
    """Knows the engine's requests of each response until its last answer is there."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str | None, Callable[[], list[int]]]] = {}

    def begin(self, response_id: str, salt: str | None, request_ids: Callable[[], list[int]]) -> None:
        """Takes note of a response.

        salt: of the client that it is for.
        request_ids: gives the engine's requests, which may be others later.
        """
        self._found[response_id] = salt, request_ids

    def end(self, response_id: str) -> None:
        """Forgets a response; one that is not known is ignored."""
        self._found.pop(response_id, None)

    def request_ids(self, response_id: str, salt: str | None) -> list[int]:
        """The engine's requests of a response; ApiError 404 unless it is on its way to this client."""
        owner, request_ids = self._found.get(response_id, (None, None))
        if request_ids is None or owner != salt:
            raise ApiError(
                404,
                f"no request {shortened(response_id)} of yours is being answered: "
                "its id is in each chunk of a stream, until the last",
            )
        return request_ids()
