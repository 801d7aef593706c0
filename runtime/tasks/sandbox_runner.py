"""Runs inside the sandbox, with the standard library alone: a program in one process, its tests in another.

`python sandbox_runner.py program|tests FILE CPU MEMORY PROCESSES FILE_SIZE`: the two are joined by their standard
streams, a line of JSON a message. The tests find the program's names in their globals and call them as if they were
their own. Values cross as plain data, so that no object of the program, nor its `__eq__`, comes to the tests; what is
no plain data stays in the program's process, and the tests hold a number for it.
"""

import builtins
import json
import os
import resource
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

Send = Callable[[Any], Any]
_COLLECTIONS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def plain(value: Any, keep: Callable[[Any], int]) -> Any:
    """A value as JSON: [kind, content]. `keep` numbers what is no plain data."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return ["v", kind(value)]
    if value is None:
        return ["v", None]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", list(value)]
    for collection in _COLLECTIONS.values():
        if isinstance(value, collection):
            return [collection.__name__, [plain(item, keep) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[plain(key, keep), plain(item, keep)] for key, item in value.items()]]
    return ["kept", keep(value)]


def value_of(message: Any, kept: Callable[[int], Any]) -> Any:
    """The value of a message of `plain`."""
    kind, content = message
    if kind == "v":
        return content
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return bytes(content)
    if kind == "dict":
        return {value_of(key, kept): value_of(item, kept) for key, item in content}
    if kind == "kept":
        return kept(content)
    return _COLLECTIONS[kind](value_of(item, kept) for item in content)


class Program:
    """The program's side: its objects by number, and what the tests ask of them."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def keep(self, value: Any) -> int:
        self._kept.append(value)
        return len(self._kept) - 1

    def answer(self, number: int, name: str, arguments: Any, keywords: Any) -> Any:
        """Calls a method of a kept object; the arguments come back as the call left them."""
        kept = self._kept.__getitem__
        args = [value_of(argument, kept) for argument in arguments]
        kwargs = {key: value_of(argument, kept) for key, argument in keywords.items()}
        owner = kept(number)
        try:
            if name == "__getattribute__":
                result = getattr(owner, *args)
            elif name == "__next__":
                result = next(owner)
            elif name == "__iter__":
                result = iter(owner)
            else:
                result = getattr(owner, name)(*args, **kwargs)
        except BaseException as error:
            return {"error": [type(error).__name__, str(error)]}
        return {
            "result": plain(result, self.keep),
            "arguments": [plain(argument, self.keep) for argument in args],
        }


class Kept:
    """The tests' side of an object that stays with the program."""

    def __init__(self, number: int, ask: Callable[..., Any]) -> None:
        self._number, self._ask = number, ask

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask(self, "__call__", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask(self, "__getattribute__", (name,), {})

    def __getitem__(self, key: Any) -> Any:
        return self._ask(self, "__getitem__", (key,), {})

    def __len__(self) -> int:
        try:
            return int(self._ask(self, "__len__", (), {}))
        except AttributeError as error:
            raise TypeError(str(error)) from None

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        items = self._ask(self, "__iter__", (), {})
        while True:
            try:
                yield self._ask(items, "__next__", (), {})
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._ask(self, "__next__", (), {})


def serve(source: str, send: Send, receive: Callable[[], Any]) -> None:
    """Runs the program as `__main__`, then answers the tests until they end."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(source, "program.py", "exec"), main.__dict__)
    program = Program()
    found = {name: value for name, value in vars(main).items() if not name.startswith("__")}
    modules = [name for name, value in found.items() if isinstance(value, types.ModuleType)]
    send(
        {
            "names": {name: plain(found[name], program.keep) for name in found if name not in modules},
            "modules": modules,
        }
    )
    while (message := receive()) is not None:
        send(program.answer(*message))


def check(source: str, send: Send, receive: Callable[[], Any]) -> None:
    """Waits for the program's names and runs the tests on them."""

    def ask(owner: Kept, name: str, args: Any, kwargs: Any) -> Any:
        def number(value: Any) -> int:
            if not isinstance(value, Kept):
                raise TypeError(f"the program cannot be given a {type(value).__name__}")
            return value._number

        keywords = {key: plain(value, number) for key, value in kwargs.items()}
        send([owner._number, name, [plain(value, number) for value in args], keywords])
        reply = receive()
        if reply is None:
            raise RuntimeError("the program ended early")
        if "error" in reply:
            kind, text = reply["error"]
            known = getattr(builtins, str(kind), None)
            if isinstance(known, type) and issubclass(known, Exception):
                raise known(text)
            raise RuntimeError(text)
        for before, after in zip(args, reply["arguments"], strict=True):
            _update(before, value_of(after, kept))
        return value_of(reply["result"], kept)

    def kept(number: int) -> Kept:
        return Kept(int(number), ask)

    first = receive()
    if first is None:
        raise RuntimeError("the program ended early")
    names: dict[str, Any] = {"__name__": "__main__"}
    names |= {name: value_of(message, kept) for name, message in first["names"].items()}
    for name in first["modules"]:
        if name in sys.stdlib_module_names:
            names[name] = __import__(name)
    exec(compile(source, "tests.py", "exec"), names)


def _update(before: Any, after: Any) -> None:
    """What a call did to a list, dict or set that it was given."""
    if type(before) is list:
        before[:] = after
    elif type(before) in (dict, set):
        before.clear()
        before.update(after)


def main() -> None:
    role, path, *limits = sys.argv[1:]
    with open(path, encoding="utf-8", errors="replace") as file:
        source = file.read()
    for name, limit in zip(("CPU", "AS", "NPROC", "FSIZE", "CORE"), [*map(int, limits), 0], strict=True):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    incoming, outgoing = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    sys.argv = [f"{role}.py"]

    def send(message: Any) -> None:
        outgoing.write(json.dumps(message) + "\n")
        outgoing.flush()

    def receive() -> Any:
        line = incoming.readline()
        return json.loads(line) if line.endswith("\n") else None

    if role == "program":
        serve(source, send, receive)
    else:
        check(source, send, receive)


if __name__ == "__main__":
    main()
