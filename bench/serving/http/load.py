"""Clients that stream answers, and note when each token came."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Bytes of a chunk of HTTP that are read at once.
_READ = 1 << 16


@dataclass(slots=True)
class Answered:
    """One answer.

    sent: seconds of `time.perf_counter` when it was asked for.
    arrivals: of its tokens.
    """

    sent: float
    arrivals: list[float] = field(default_factory=list)
    text: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds from each token to the next."""
        return [after - before for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def stream(address: str, body: dict[str, Any]) -> Answered:
    """Sends a body to /v1/completions and reads the events of its answer.

    By plain sockets: on a machine of few cores a client library would take the server's time.
    """
    host, _, port = address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=_READ)
    content = json.dumps(body | {"stream": True}).encode()
    answered = Answered(time.perf_counter())
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (host.encode(), len(content), content)
        )
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status.decode().strip()}: {(await reader.read(500)).decode()}")
        async for line in reader:
            if line.startswith(b"data: {"):
                _take(answered, line)
    finally:
        writer.close()
    return answered


def _take(answered: Answered, line: bytes) -> None:
    event = json.loads(line[6:])
    if "error" in event:
        raise RuntimeError(event["error"]["message"])
    answered.arrivals.append(time.perf_counter())
    answered.text += event["choices"][0]["text"]


def closed_loop(address: str, bodies: Sequence[dict[str, Any]], clients: int) -> list[Answered]:
    """So many clients, each of which asks when it has its answer; the answers in the order of the bodies."""

    async def ask_all() -> list[Answered]:
        limit = asyncio.Semaphore(clients)

        async def ask(body: dict[str, Any]) -> Answered:
            async with limit:
                return await stream(address, body)

        return list(await asyncio.gather(*map(ask, bodies)))

    return asyncio.run(ask_all())


def open_loop(address: str, bodies: Sequence[dict[str, Any]], rate: float) -> list[Answered]:
    """Requests that come by themselves, so many a second on average, with exponential gaps."""
    gaps = random.Random(0)

    async def ask_all() -> list[Answered]:
        tasks = []
        for body in bodies:
            tasks.append(asyncio.ensure_future(stream(address, body)))
            await asyncio.sleep(gaps.expovariate(rate))
        return list(await asyncio.gather(*tasks))

    return asyncio.run(ask_all())
