"""Experts come, change and go while the server runs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zweave import Engine, Expert, Request
from zweave.experts.expert_file import ExpertFile

ADMIN = {"Authorization": "Bearer admin"}
BODY = {"prompt": list(range(3, 40)), "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def experts(
    tiny_engine: Callable[..., Engine], random_expert: Callable[..., Expert], tmp_path: Path
) -> tuple[Path, Path]:
    """The files of two experts for the server's model."""
    shapes = tiny_engine().model.config.adapted_shapes()
    files = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    for seed, file in enumerate(files):
        random_expert(shapes, seed=40 + seed, description=f"number {seed}").save(file)
    return files


def answer(server: Any, model: str) -> dict:
    told = server.http().post("/v1/completions", json=BODY | {"model": model})
    assert told.status_code == 200, told.text
    return told.json()["choices"][0]


def direct(tiny_engine: Callable[..., Engine], file: Path) -> str:
    engine = tiny_engine()
    engine.load_expert("x", file)
    return engine.generate(Request(BODY["prompt"], expert="x", max_tokens=8, ignore_eos=True))[0].text


def test_an_uploaded_expert_answers_and_one_of_its_name_replaces_it(
    start_server: Any, tiny_engine: Callable[..., Engine], experts: tuple[Path, Path]
) -> None:
    server = start_server(admin_key="admin")
    http = server.http(headers=ADMIN)
    wanted = [direct(tiny_engine, file) for file in experts]
    assert wanted[0] != wanted[1]
    for file, text in zip((*experts, experts[0]), (*wanted, wanted[0]), strict=True):
        told = http.post("/v1/experts?name=x", content=file.read_bytes())
        assert (told.status_code, told.json()["digest"]) == (201, Expert.load(file).digest)
        # The cache holds the same prompt under the expert that had this name before.
        assert answer(server, "x")["text"] == text
    assert answer(server, "x")["zweave"]["reused_tokens"] == 36
    assert [entry["name"] for entry in http.get("/v1/experts").json()["experts"]][-1] == "x"
    assert http.delete("/v1/experts/x").json() == {"name": "x", "deleted": True}
    assert http.post("/v1/completions", json=BODY | {"model": "x"}).status_code == 404
    assert http.delete("/v1/experts/x").status_code == 404


def test_only_the_admin_key_loads_and_unloads(start_server: Any, experts: tuple[Path, Path]) -> None:
    server = start_server(admin_key="admin", api_keys=("mine",))
    content = experts[0].read_bytes()
    for headers in ({}, {"Authorization": "Bearer mine"}, {"Authorization": "Basic admin"}):
        http = server.http(headers=headers)
        assert http.post("/v1/experts?name=x", content=content).status_code == 401
        assert http.delete("/v1/experts/a").status_code == 401
        body = {"lora_name": "x", "lora_path": "x"}
        assert http.post("/v1/load_lora_adapter", json=body).status_code == 401
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "a"}).status_code == 401
    assert "x" not in server.engine.experts() and "a" in server.engine.experts()
    assert server.http(headers=ADMIN).post("/v1/completions", json=BODY).status_code == 401


@pytest.mark.parametrize(
    ("name", "content", "status", "words"),
    [
        ("x", b"", 400, "is not a whole safetensors file"),
        ("x", b"\x80\x04\x95 a pickle", 400, "is not a whole safetensors file"),
        ("x", b"\xff" * 8 + b"{}", 400, "is not a whole safetensors file"),
        ("x", b"0" * (2 << 20), 413, "larger than an expert for this model can be"),
        ("base", b"", 400, "reserved"),
        ("tiny", b"", 400, "names a model of this server"),
        ("x y", b"", 400, "cannot be an expert's name"),
    ],
)
def test_uploads_that_are_none(start_server: Any, name: str, content: bytes, status: int, words: str) -> None:
    server = start_server(admin_key="admin")
    told = server.http(headers=ADMIN).post("/v1/experts", params={"name": name}, content=content)
    assert told.status_code == status and words in told.json()["error"]["message"], told.text
    assert str(Path(os.sep, "tmp")) not in told.text


def test_uploads_are_kept_up_to_a_size(start_server: Any, experts: tuple[Path, Path]) -> None:
    content = experts[0].read_bytes()
    server = start_server(admin_key="admin", max_uploads=len(content) + 10)
    http = server.http(headers=ADMIN)
    assert http.post("/v1/experts?name=x", content=content).status_code == 201
    assert http.post("/v1/experts?name=x", content=content).status_code == 201
    assert http.post("/v1/experts?name=y", content=content).status_code == 409
    http.delete("/v1/experts/x")
    assert http.post("/v1/experts?name=y", content=content).status_code == 201


def test_a_directory_is_loaded_by_name_when_first_asked(
    start_server: Any, tiny_engine: Callable[..., Engine], experts: tuple[Path, Path]
) -> None:
    folder = experts[0].parent / "experts"
    (folder / "team").mkdir(parents=True)
    (folder / "team" / "x.safetensors").write_bytes(experts[0].read_bytes())
    (folder / "link.safetensors").symlink_to(experts[1])
    (folder / "same.safetensors").symlink_to(folder / "team" / "x.safetensors")
    server = start_server(experts=folder)
    listed = {model["id"]: model["zweave"] for model in server.http().get("/v1/models").json()["data"]}
    assert listed["team/x"] == {"kind": "expert", "loaded": False}
    assert "same" in listed
    assert "link" not in listed, "it leads out of the directory"
    assert answer(server, "team/x")["text"] == direct(tiny_engine, experts[0])
    assert server.http().get("/v1/models/team/x").json()["zweave"]["description"] == "number 0"
    (folder / "team" / "x.safetensors").write_bytes(experts[1].read_bytes())
    assert answer(server, "team/x")["text"] == direct(tiny_engine, experts[1])
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    for name in ("link", "../x", "team/../../x", "/x", "nobody", "loop", "n" * 255, f"{folder}/team/x/.."):
        told = server.http().post("/v1/completions", json=BODY | {"model": name})
        assert told.status_code == 404, name
    (folder / "broken.safetensors").write_bytes(b"none")
    told = server.http().post("/v1/completions", json=BODY | {"model": "broken"})
    assert told.status_code == 400
    assert told.json()["error"]["message"].startswith("broken.safetensors: is not a whole safetensors file")


def test_a_request_looks_once_whether_a_file_is_unchanged(
    start_server: Any, experts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(experts=experts[0].parent)
    first = answer(server, "x:0.5+y:1")
    looks: list[Path] = []
    is_unchanged = ExpertFile.is_unchanged.fget

    def counted(file: ExpertFile) -> bool:
        looks.append(file.path)
        return is_unchanged(file)

    monkeypatch.setattr(ExpertFile, "is_unchanged", property(counted))
    assert answer(server, "x:0.5+y:1")["text"] == first["text"]
    assert sorted(looks) == sorted(experts)


def test_vllms_calls_load_from_the_directory_alone(start_server: Any, experts: tuple[Path, Path]) -> None:
    folder = experts[0].parent / "adapters"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "adapter_model.safetensors").write_bytes(experts[0].read_bytes())
    server = start_server(admin_key="admin", experts=folder)
    http = server.http(headers=ADMIN)

    def load(path: str, **more: Any) -> int:
        body = {"lora_name": "mine", "lora_path": path, **more}
        return http.post("/v1/load_lora_adapter", json=body).status_code

    assert load(str(experts[1])) == 404
    for path in ("../y.safetensors", "a\0b", "a" * 5000, "x/../../y.safetensors", ".", ""):
        assert load(path) == 404
    assert load("x") == 200
    assert load(str(folder / "x")) == 400
    assert load(str(folder / "x"), load_inplace=True) == 200
    assert answer(server, "mine")["zweave"]["expert"] == "mine"
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 200
    assert "mine" not in server.engine.experts()


def test_aliases_name_mixtures(start_server: Any) -> None:
    server = start_server(aliases={"both": {"a": 0.5, "b": 0.5}, "first": "a"})
    assert answer(server, "both")["text"] == answer(server, "a:0.5+b:0.5")["text"]
    assert answer(server, "first")["zweave"]["expert"] == "a"
    assert server.http().get("/v1/models/both").json()["zweave"]["expert"] == {"a": 0.5, "b": 0.5}


def test_of_several_servers_none_takes_an_expert_that_the_others_would_miss(start_server: Any) -> None:
    http = start_server(replicated=True, admin_key="admin").http(headers=ADMIN)
    adapter = {"lora_name": "x", "lora_path": "x.safetensors"}
    for told in (
        http.post("/v1/experts?name=x", content=b"x"),
        http.delete("/v1/experts/a"),
        http.post("/v1/load_lora_adapter", json=adapter),
        http.post("/v1/unload_lora_adapter", json={"lora_name": "a"}),
    ):
        assert told.status_code == 403
        assert "put NAME.safetensors into the directory" in told.json()["error"]["message"]
