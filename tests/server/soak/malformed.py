"""What no server should be sent, and the status that it gets; None where no answer can be expected."""

import json

from connection import message, post

_GOOD = {"model": "base", "prompt": "x", "max_tokens": 2}
_JSON = {"Content_Type": "application/json"}
_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"


def malformed(admin_key: str) -> list[tuple[bytes, int | None]]:
    admin = {"Authorization": f"Bearer {admin_key}"}
    return [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET  HTTP/1.1\r\n\r\n", 400),
        (_HEAD + b"Content-Length: x\r\n\r\n", 400),
        (_HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n", 400),
        (_HEAD + b"Content-Length: 1000000000\r\n\r\n", 413),
        (_HEAD + b'Content-Length: 500\r\n\r\n{"model": "ba', None),
        (_HEAD, None),
        (message("POST", "/v1/experts?name=half", b"", **admin)[:-5] + b"9000\r\n\r\nhalf", None),
        (message("POST", "/v1/completions", json.dumps(_GOOD).encode()[:-3], **_JSON), 400),
        (message("POST", "/v1/completions", b"\xff\xfe", **_JSON), 400),
        (message("POST", "/v1/completions", b"[" * 20000, **_JSON), 400),
        (post("/v1/completions", [1, 2]), 400),
        (post("/v1/completions", _GOOD | {"prompt": [10**9]}), 400),
        (post("/v1/completions", _GOOD | {"prompt": "x" * 3000, "stream": True}), 400),
        (post("/v1/completions", _GOOD | {"max_tokens": -1}), 400),
        (post("/v1/completions", _GOOD | {"model": "nobody"}), 404),
        (post("/v1/completions", _GOOD | {"model": "../../etc/passwd", "stream": True}), 404),
        (post("/v1/chat/completions", {"messages": "x"}), 400),
        (post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc/passwd"}), 401),
        (message("POST", "/v1/experts?name=x", b"0" * 64, **admin), 400),
        (message("POST", "/v1/experts?name=x", b"0" * 64), 401),
        (message("DELETE", "/v1/experts/nobody", **admin), 404),
        (message("GET", "/v1/completions"), 405),
    ]
