"""Experts that come and go while a server answers others."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ADMIN_KEY = "bench"
# Seconds from a load to the unload, and from there to the next load.
_PAUSE = 0.05


@contextmanager
def churn(address: str, file: Path) -> Iterator[None]:
    """Uploads a file under ever new names and deletes them; RuntimeError in the end if one was refused."""
    body, stop = file.read_bytes(), threading.Event()
    failures: list[str] = []

    def load_and_unload() -> None:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        with httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False) as client:
            index = 0
            while not stop.is_set() and not failures:
                name = f"churn{index}"
                for answer in (
                    client.post("/v1/experts", params={"name": name}, content=body),
                    client.delete(f"/v1/experts/{name}"),
                ):
                    if answer.is_error:
                        failures.append(answer.text)
                    stop.wait(_PAUSE)
                index += 1

    thread = threading.Thread(target=load_and_unload)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise RuntimeError(f"a load or unload was refused: {failures[0]}")
