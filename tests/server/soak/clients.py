"""The clients of the soak: they ask, leave, dawdle and send nonsense while experts come and go.

    python clients.py < job.json

job: {"port", "seconds", "clients", "seed", "admin_key", "directory": of the server's experts,
      "fixed": [{"path", "body", "texts": answers}], "long": one of these whose stream fills buffers,
      "names": {name: {"kind", "versions": [[file, [answer to each prompt]], ...]}}, "prompts": [token ids],
      "new": tokens of these answers}
The last line of the output is {"counts": {what: how often}, "faults": [texts]}: every answer must be right, every name
known that is there, and every request answered in time.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from connection import Connection, exchange, message, post
from malformed import malformed
from names import ABSENT, Name

# Seconds after which a request counts as lost.
_PATIENCE = 120
_LOADERS = 3


class Soak:
    """All clients, and what they found."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job, self._port = job, job["port"]
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._names = [
            Name(text, entry["kind"], {0 if entry["kind"] == "file" else ABSENT})
            for text, entry in job["names"].items()
        ]
        self._admin = {"Authorization": f"Bearer {job['admin_key']}"}
        self._malformed = malformed(job["admin_key"])

    async def run(self) -> None:
        self._end = time.monotonic() + self._job["seconds"]
        clients = [self._loop(index, self._client) for index in range(self._job["clients"])]
        loaders = [self._loop(-1 - index, self._loader) for index in range(_LOADERS)]
        await asyncio.gather(*clients, *loaders)

    async def _loop(self, index: int, act: Any) -> None:
        chance = random.Random(self._job["seed"] * 1000 + index)
        while time.monotonic() < self._end and len(self.faults) < 20:
            try:
                await asyncio.wait_for(act(chance), _PATIENCE)
            except Exception as error:
                self.faults.append(f"{act.__name__}: {type(error).__name__}: {error}")

    async def _client(self, chance: random.Random) -> None:
        kinds = (self._named, self._fixed, self._leave, self._dawdle, self._nonsense, self._look)
        (act,) = chance.choices(kinds, (10, 5, 3, 1, 2, 1))
        self.counts[act.__name__[1:]] += 1
        await act(chance)

    async def _named(self, chance: random.Random) -> None:
        """Asks under a name that may change meanwhile."""
        name, which = chance.choice(self._names), chance.randrange(len(self._job["prompts"]))
        body = {"model": name.text, "prompt": self._job["prompts"][which], "max_tokens": self._job["new"]}
        with name.watched() as met:
            status, texts = await self._ask("/v1/completions", body, chance.random() < 0.5)
        versions = self._job["names"][name.text]["versions"]
        known = [versions[version][1][which] for version in met if version != ABSENT]
        if status == 200:
            self._check(texts[0] in known, f"{name.text} of {sorted(met)} answered {texts}, not {known}")
            self.counts["answers under a name that changed"] += len(met) > 1
        else:
            self._check(status == 404 and ABSENT in met, f"{name.text} of {sorted(met)}: {status} {texts}")
            self.counts["names that were not there"] += 1

    async def _fixed(self, chance: random.Random) -> None:
        """Asks what has one answer."""
        case = chance.choice(self._job["fixed"])
        status, texts = await self._ask(case["path"], case["body"], chance.random() < 0.5)
        self._check((status, texts) == (200, case["texts"]), f"{case['body']}: {status} {texts}")

    async def _leave(self, chance: random.Random) -> None:
        """Goes before the answer is there."""
        case = chance.choice(self._job["fixed"])
        streams = chance.random() < 0.5
        async with Connection(self._port) as connection:
            await connection.send(post(case["path"], case["body"] | {"stream": streams, "max_tokens": 100}))
            if streams:
                await connection.status()
                left = chance.randrange(20)
                async for _ in connection.events():
                    left -= 1
                    if left < 0:
                        break
            else:
                await asyncio.sleep(chance.random() / 10)
            if chance.random() < 0.5:
                connection.abort()

    async def _dawdle(self, chance: random.Random) -> None:
        """Reads slowly: the server has to wait with what it sends, and loses nothing. Or stops reading, and goes."""
        case = self._job["long"]
        async with Connection(self._port, read_buffer=4096) as connection:
            await connection.send(post(case["path"], case["body"] | {"stream": True}))
            self._check(await connection.status() == 200, f"{case['body']}: refused")
            if chance.random() < 0.3:
                await asyncio.sleep(3 * chance.random())
                return
            read = bytearray()
            while part := await connection.reader.read(20000):
                read += part
                await asyncio.sleep(0.02)
        lines = [line[6:] for line in bytes(read).split(b"\n") if line.startswith(b"data: ")]
        texts = _joined([json.loads(line) for line in lines[:-1]], len(case["texts"]))
        self._check(lines[-1] == b"[DONE]" and texts == case["texts"], f"slowly, {case['body']}: {texts}")

    async def _nonsense(self, chance: random.Random) -> None:
        content, wanted = chance.choice(self._malformed)
        async with Connection(self._port) as connection:
            await connection.send(content)
            if wanted is None:
                await asyncio.sleep(chance.random() / 20)
            else:
                status = await connection.status()
                self._check(status == wanted, f"{content[:200]!r}: {status}, not {wanted}")

    async def _look(self, chance: random.Random) -> None:
        path = chance.choice(("/v1/models", "/v1/experts", "/v1/models/tiny", "/health", "/metrics", "/"))
        async with Connection(self._port) as connection:
            await connection.send(message("GET", path))
            self._check(await connection.status() == 200, path)
            await connection.reader.read()

    async def _ask(self, path: str, body: dict[str, Any], streams: bool) -> tuple[int, list[str]]:
        """Status and answers; a message where there are none."""
        body = {"temperature": 0, "ignore_eos": True, **body, "stream": streams}
        async with Connection(self._port) as connection:
            await connection.send(post(path, body))
            status = await connection.status()
            if status != 200 or not streams:
                told = await connection.json()
                if status != 200:
                    return status, [told["error"]["message"]]
                return status, [_text(choice) for choice in told["choices"]]
            events = [event async for event in connection.events()]
        failure = next((event["error"] for event in events if event and "error" in event), None)
        if failure is not None:
            return failure["code"], [failure["message"]]
        self._check(events[-1] is None, f"{body}: the stream did not end")
        prompts = body.get("prompt", "")
        several = len(prompts) if isinstance(prompts, list) and not isinstance(prompts[0], int) else 1
        return status, _joined(events[:-1], several * body.get("n", 1))

    async def _loader(self, chance: random.Random) -> None:
        """Loads, replaces or takes away the expert of one name."""
        name = chance.choice([name for name in self._names if not name.is_changing])
        self.counts[f"{name.kind} changes"] += 1
        if name.kind == "file":
            await self._change_file(name, chance)
        elif name.possible != {ABSENT} and chance.random() < 0.3:
            with name.changes(ABSENT):
                await self._admin_call(message("DELETE", f"/v1/experts/{name.text}", **self._admin), 200)
        elif name.kind == "upload":
            version = name.next_version(chance)
            content = Path(self._file(name, version)).read_bytes()
            with name.changes(version):
                path = f"/v1/experts?name={name.text}"
                await self._admin_call(message("POST", path, content, **self._admin), 201)
        else:
            await self._load_adapter(name, name.next_version(chance))
        await asyncio.sleep(0.005)

    async def _change_file(self, name: Name, chance: random.Random) -> None:
        """Replaces a file of the directory at once; or has its expert forgotten, which the next request loads again."""
        if chance.random() < 0.3:
            content = message("DELETE", f"/v1/experts/{name.text}", **self._admin)
            status, _ = await exchange(self._port, content)
            self._check(status in (200, 404), f"DELETE {name.text}: {status}")
            return
        version = name.next_version(chance)
        target = Path(self._job["directory"]) / f"{name.text}.safetensors"
        with name.changes(version):
            beside = target.with_suffix(".new")
            beside.write_bytes(Path(self._file(name, version)).read_bytes())
            os.replace(beside, target)

    async def _load_adapter(self, name: Name, version: int) -> None:
        path = os.path.relpath(self._file(name, version), self._job["directory"])
        body = {"lora_name": name.text, "lora_path": path, "load_inplace": True}
        content = json.dumps(body).encode()
        headers = {"Content_Type": "application/json", **self._admin}
        with name.changes(version):
            await self._admin_call(message("POST", "/v1/load_lora_adapter", content, **headers), 200)

    async def _admin_call(self, content: bytes, wanted: int) -> None:
        status, told = await exchange(self._port, content)
        self._check(status == wanted, f"{content[:80]!r}: {status} {told}")

    def _file(self, name: Name, version: int) -> str:
        return self._job["names"][name.text]["versions"][version][0]

    def _check(self, is_right: bool, what: str) -> None:
        self.counts["checks"] += 1
        if not is_right:
            self.faults.append(what)


def _text(choice: dict[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice["message"]["content"]


def _joined(events: list[dict[str, Any]], choices: int) -> list[str]:
    """The answers of a stream."""
    texts = [""] * choices
    for event in events:
        for choice in event["choices"]:
            added = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            texts[choice["index"]] += added
    return texts


if __name__ == "__main__":
    soak = Soak(json.load(sys.stdin))
    asyncio.run(soak.run())
    print(json.dumps({"counts": soak.counts, "faults": soak.faults}))
