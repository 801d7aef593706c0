"""HTTP over plain sockets, so that a client can leave, stop reading or send nonsense when it wants to."""

import asyncio
import json
import socket
from typing import Any

LIMIT = 1 << 20


class Connection:
    """One connection, for one request: `async with Connection(port) as connection:`."""

    def __init__(self, port: int, read_buffer: int = LIMIT) -> None:
        self._port, self._read_buffer = port, read_buffer

    async def __aenter__(self) -> "Connection":
        end = socket.socket()
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._read_buffer)
        end.setblocking(False)
        await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", self._port))
        self.reader, self.writer = await asyncio.open_connection(sock=end, limit=self._read_buffer)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def abort(self) -> None:
        """Leaves without a word."""
        self.writer.transport.abort()

    async def send(self, content: bytes) -> None:
        """Sends bytes as they are."""
        self.writer.write(content)
        await self.writer.drain()

    async def status(self) -> int:
        """Reads the status and the headers of the response."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1])

    async def json(self) -> Any:
        """The body of a whole response."""
        return json.loads(await self.reader.read())

    async def events(self) -> Any:
        """Yields the events of a stream; None is the one that ends it."""
        async for line in self.reader:
            if line.startswith(b"data: "):
                yield None if line == b"data: [DONE]\n" else json.loads(line[6:])


def message(method: str, path: str, content: bytes = b"", **headers: str) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(content)}", "", ""]
    return "\r\n".join(lines).encode() + content


def post(path: str, body: Any) -> bytes:
    """A request with a JSON body."""
    return message("POST", path, json.dumps(body).encode(), Content_Type="application/json")


async def exchange(port: int, content: bytes) -> tuple[int, Any]:
    """Sends one request and returns status and JSON of the response."""
    async with Connection(port) as connection:
        await connection.send(content)
        return await connection.status(), await connection.json()
