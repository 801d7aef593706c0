"""HTTP itself spoken badly, on a socket of the test's own."""

import json
import socket
from typing import Any

import pytest

BODY = b'{"model": "a", "prompt": "x", "max_tokens": 2}'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
START = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def length(value: object) -> bytes:
    return f"Content-Length: {value}\r\n".encode()


def spoken(server: Any, raw: bytes, closes: bool = True) -> bytes:
    """What the server says to some bytes until it closes the connection, or has answered."""
    host, port = server.url.removeprefix("http://").split(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            connection.sendall(raw)
            if closes:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                said += part
                if b"\r\n\r\n" in said and not closes:
                    break
        except OSError:
            pass  # it has closed before it read all
    return said


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(START + length(len(BODY) - 9) + b"\r\n" + BODY, id="length too small"),
        pytest.param(START + length(len(BODY) + 9) + b"\r\n" + BODY, id="length too large"),
        pytest.param(START + length(-1) + b"\r\n" + BODY, id="negative length"),
        pytest.param(START + length("ten") + b"\r\n" + BODY, id="length no number"),
        pytest.param(START + length("\u0661") + b"\r\n" + BODY, id="length in other digits"),
        pytest.param(START + length(10**30) + b"\r\n" + BODY, id="huge length"),
        pytest.param(START + length("9" * 5000) + b"\r\n" + BODY, id="length of many digits"),
        pytest.param(START + length(5) + length(9) + b"\r\n" + BODY, id="two lengths"),
        pytest.param(START + length(5) + CHUNKED + b"\r\n5\r\n{}  }\r\n0\r\n\r\n", id="length and chunks"),
        pytest.param(START + CHUNKED + b"\r\nzz\r\n" + BODY, id="chunk of no length"),
        pytest.param(START + CHUNKED + b"\r\nffffffffffffffffffff\r\n" + BODY, id="huge chunk"),
        pytest.param(START + CHUNKED + b"\r\n5\r\n{}", id="chunk cut off"),
        pytest.param(START + CHUNKED + b"\r\n" + b"1\r\n \r\n" * 2_000, id="many small chunks"),
        pytest.param(START + CHUNKED + b"\r\nfffff\r\n" + b" " * 0xFFFFF + b"\r\n", id="large chunk"),
        pytest.param(START + b"Transfer-Encoding: gzip\r\n\r\n" + BODY, id="other transfer encoding"),
        pytest.param(START + b"Content-Encoding: gzip\r\n" + length(4) + b"\r\n\x1f\x8b\x08\x00", id="gzip"),
        pytest.param(START + b"Expect: 200-ok\r\n" + length(4) + b"\r\nnull", id="other expectation"),
        pytest.param(START + b"A: b\r\n" * 50_000 + b"\r\n", id="many headers"),
        pytest.param(START + b"A: " + b"b" * 1_000_000 + b"\r\n\r\n", id="long header"),
        pytest.param(
            START + b"Authorization: Bearer \xff\xfe\r\n" + length(4) + b"\r\nnull", id="key no text"
        ),
        pytest.param(START + b"\x00: \x00\r\n\r\n", id="NUL in a header"),
        pytest.param(START + b" folded\r\n\r\n", id="folded header"),
        pytest.param(START + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", id="upgrade"),
        pytest.param(b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long path"),
        pytest.param(b"GET /%zz%00%ff?%zz=%ff HTTP/1.1\r\nHost: x\r\n\r\n", id="path of bad escapes"),
        pytest.param(b"GET http://[/v1 HTTP/1.1\r\nHost: x\r\n\r\n", id="bad URL"),
        pytest.param(b"GET /v1/models?name=1&name=2 HTTP/1.1\r\nHost: \xff\r\n\r\n", id="host no text"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", id="asterisk"),
        pytest.param(b"POST /v1/completions HTTP/9.9\r\n\r\n", id="other version"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), id="TLS"),
        pytest.param(b"\r\n" * 100_000, id="empty lines"),
        pytest.param(bytes(range(256)) * 300, id="any bytes"),
    ],
)
def test_http_that_is_none(attacked: Any, raw: bytes) -> None:
    said = spoken(attacked, raw)
    for line in said.split(b"\r\n"):
        if line.startswith(b"HTTP/1.1"):
            assert int(line.split()[1]) < 500, said
    assert b"Traceback" not in said and str(attacked.settings.experts).encode() not in said


def test_a_body_in_chunks_is_read_up_to_the_limit(attacked: Any) -> None:
    for size, status in ((10_000, b"200"), (200_000, b"413")):
        body = BODY.ljust(size)
        chunks = b"".join(b"3e8\r\n" + body[at : at + 1000] + b"\r\n" for at in range(0, size, 1000))
        said = spoken(attacked, START + CHUNKED + b"\r\n" + chunks + b"0\r\n\r\n", closes=False)
        assert said.split()[1] == status
    told = json.loads(said.partition(b"\r\n\r\n")[2] or b'{"error": {"message": "100000 bytes"}}')
    assert "100000 bytes" in told["error"]["message"]
