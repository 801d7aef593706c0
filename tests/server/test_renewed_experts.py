"""Experts that change between the look-up of a request's expert and its first step."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zweave import Engine, Expert, Request

ADMIN = {"Authorization": "Bearer admin"}
BODY = {"prompt": list(range(3, 40)), "max_tokens": 8, "temperature": 0, "ignore_eos": True}
LONG = {"model": "a", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True}


@pytest.fixture
def made(tiny_engine: Callable[..., Engine], random_expert: Callable[..., Expert]) -> list[Expert]:
    """Two experts for the server's model."""
    shapes = tiny_engine().model.config.adapted_shapes()
    return [random_expert(shapes, seed=seed) for seed in (40, 41)]


def replace(file: Path, expert: Expert) -> None:
    """Puts an expert in the place of a file at once."""
    beside = file.with_suffix(".new")
    expert.save(beside)
    beside.replace(file)


def test_a_file_is_replaced_while_requests_wait(
    start_server: Any, tiny_engine: Callable[..., Engine], made: list[Expert], tmp_path: Path
) -> None:
    old, new = made
    engine = tiny_engine()
    for name, expert in (("old", old), ("new", new)):
        engine.load_expert(name, expert)
        expert.save(tmp_path / ("x.safetensors" if name == "old" else "y.safetensors"))

    def direct(choice: Any) -> str:
        return engine.generate(Request(BODY["prompt"], expert=choice, max_tokens=8, ignore_eos=True))[0].text

    server = start_server({"slots": 1}, experts=tmp_path)
    server.slow_down()
    told: dict[str, str] = {}

    def ask(model: str) -> None:
        body = BODY | {"model": model}
        told[model] = server.http().post("/v1/completions", json=body).json()["choices"][0]["text"]

    models = ("x", "x:0.5+y:1")
    waiting = [threading.Thread(target=ask, args=(model,)) for model in models]
    with server.http().stream("POST", "/v1/completions", json=LONG) as stream:
        lines = stream.iter_lines()
        next(lines)
        for thread in waiting:
            thread.start()
        while server.in_work() < 3:
            pass
        replace(tmp_path / "x.safetensors", new)
    for thread in waiting:
        thread.join()
    # The first holds what it found; the other read nothing yet, and takes what is there now.
    assert told == {"x": direct("old"), "x:0.5+y:1": direct({"new": 1.5})}
    assert direct("old") != direct("new")
    ask("x")
    assert told["x"] == direct("new")


@pytest.mark.parametrize(("is_file", "status"), [(True, 200), (False, 404)])
def test_an_expert_goes_before_the_engine_has_the_request(
    start_server: Any, made: list[Expert], tmp_path: Path, is_file: bool, status: int
) -> None:
    server = start_server(experts=tmp_path, admin_key="admin")
    file = tmp_path / ("x.safetensors" if is_file else "elsewhere")
    made[0].save(file)
    if not is_file:
        server.http(headers=ADMIN).post("/v1/experts?name=x", content=file.read_bytes())
    add, went = server.engine.add, []

    def late_add(request: Request) -> int:
        if not went:
            went.append(server.http(headers=ADMIN).delete("/v1/experts/x").status_code)
        return add(request)

    server.engine.add = late_add
    told = server.http().post("/v1/completions", json=BODY | {"model": "x"})
    assert (went, told.status_code) == ([200], status)


@pytest.mark.parametrize(("is_file", "status"), [(True, 200), (False, 404)])
def test_an_expert_goes_before_it_is_looked_up(
    start_server: Any, made: list[Expert], tmp_path: Path, is_file: bool, status: int
) -> None:
    server = start_server(experts=tmp_path)
    bank, went = server.engine.bank, []
    look_up = bank.look_up
    if is_file:
        made[0].save(tmp_path / "x.safetensors")
    else:
        bank.load("x", made[0])

    def late_look_up(mixture: Any) -> Any:
        if not went:
            went.append(bank.unload("x"))
        return look_up(mixture)

    bank.look_up = late_look_up
    told = server.http().post("/v1/completions", json=BODY | {"model": "x"})
    assert (len(went), told.status_code) == (1, status)


def test_uploads_at_once_are_kept_up_to_a_size_too(
    start_server: Any, made: list[Expert], tmp_path: Path
) -> None:
    made[0].save(tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    server = start_server(admin_key="admin", max_uploads=3 * len(content))
    statuses: list[int] = []

    def upload(index: int) -> None:
        path = f"/v1/experts?name=x{index}"
        statuses.append(server.http(headers=ADMIN).post(path, content=content).status_code)

    threads = [threading.Thread(target=upload, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 3 + [409] * 9
