"""LoRAs are served as experts are: by name from a directory, over HTTP, mixed, replaced and refused in one line."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zweave import Engine, Request
from zweave.adapters.compression.compress import compress
from zweave.adapters.compression.compressed_file import save_compressed
from zweave.adapters.lora import Lora, LoraPair

ADMIN = {"Authorization": "Bearer admin"}
BODY = {"prompt": list(range(3, 40)), "max_tokens": 8, "temperature": 0, "ignore_eos": True}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def loras(save_lora: Callable[..., Any]) -> list[Path]:
    """Two LoRAs for the server's model."""
    return [save_lora(f"l{seed}", seed, r=4, merge=False)[0] for seed in (1, 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "served" / "team").mkdir(parents=True)
    return tmp_path / "served"


def post(server: Any, model: str) -> Any:
    return server.http().post("/v1/completions", json=BODY | {"model": model})


def answer(server: Any, model: str) -> str:
    told = post(server, model)
    assert told.status_code == 200, told.text
    return told.json()["choices"][0]["text"]


@pytest.fixture
def direct(tiny_engine: Callable[..., Engine], loras: list[Path]) -> Callable[[Any], str]:
    """What the engine answers under "l1", "l2", the experts of the server, and mixtures of them."""
    engine = tiny_engine(prefix_cache=False)
    for path in loras:
        engine.load_expert(path.name, path)

    def run(choice: Any) -> str:
        request = Request(BODY["prompt"], expert=choice, max_tokens=8, ignore_eos=True)
        return engine.generate(request)[0].text

    return run


def test_a_directory_of_loras_is_served_by_name_and_renewed(
    start_server: Any, direct: Callable[[Any], str], loras: list[Path], folder: Path
) -> None:
    one, two = loras
    place = folder / "team" / "x"
    shutil.copytree(one, place)
    server = start_server(experts=folder)
    listed = {model["id"]: model["zweave"] for model in server.http().get("/v1/models").json()["data"]}
    assert listed["team/x"] == {"kind": "lora", "loaded": False} and "team/x/adapter_model" not in listed
    wanted = [direct("l1"), direct("l2")]
    assert len({*wanted, direct(None)}) == 3
    for source, text in ((one, wanted[0]), (two, wanted[1]), (one, wanted[0])):
        beside = folder.parent / "new"
        shutil.copytree(source, beside)
        shutil.rmtree(place)
        beside.rename(place)
        # The cache holds the same prompt under the LoRA that had this name before.
        assert answer(server, "team/x") == text
    told = server.http().get("/v1/models/team/x").json()["zweave"]
    assert (told["kind"], told["rank"], told["scope"], told["own_words"]) == ("lora", 4, "always", False)
    kinds = {entry["name"]: entry["kind"] for entry in server.http().get("/v1/experts").json()["experts"]}
    assert kinds["team/x"] == "lora" and kinds["a"] == "expert"
    assert answer(server, "team/x:0.5+a:0.5") == direct({"l1": 0.5, "a": 0.5})
    (place / "zweave.json").write_text(
        json.dumps({"scope": "after_prompt", "prompt_template": {"version": 1, "user": "Say {text}"}})
    )
    bare = {"model": "team/x", "prompt": "it", "max_tokens": 2}
    told = server.http().post("/v1/completions", json=bare).json()["choices"][0]["zweave"]
    assert told["asked"] == "Say it"
    told = server.http().get("/v1/models/team/x").json()["zweave"]
    assert (told["scope"], told["own_words"]) == ("after_prompt", True)


def test_nothing_outside_the_directory_is_read(start_server: Any, loras: list[Path], folder: Path) -> None:
    outside = loras[0]
    (outside / "zweave.json").write_text('{"scope": "always"}')
    for name in (CONFIG, WEIGHTS, "zweave.json"):
        shutil.copytree(outside, folder / f"linked-{name}")
        (folder / f"linked-{name}" / name).unlink()
        (folder / f"linked-{name}" / name).symlink_to(outside / name)
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to("loop")
    shutil.copytree(outside, folder / "x")
    shutil.copytree(outside, folder, dirs_exist_ok=True)
    server = start_server(experts=folder, admin_key="admin")
    linked = [path.name for path in folder.iterdir() if "link" in path.name]
    for name in (*linked, "loop", "team", "x/..", "../l1", "team/../../l1", str(outside), "n" * 255):
        assert post(server, name).status_code == 404, name
        body = {"lora_name": "mine", "lora_path": name}
        told = server.http(headers=ADMIN).post("/v1/load_lora_adapter", json=body)
        assert told.status_code in (400, 404) and "mine" not in server.engine.experts(), name
    assert len(linked) == 4 and answer(server, "x")


def test_vllms_calls_load_replace_and_unload_loras(
    start_server: Any, direct: Callable[[Any], str], loras: list[Path], folder: Path
) -> None:
    for path in loras:
        shutil.copytree(path, folder / path.name)
    server = start_server(admin_key="admin", experts=folder)
    http = server.http(headers=ADMIN)

    def load(path: object, **more: Any) -> int:
        body = {"lora_name": "mine", "lora_path": str(path), **more}
        return http.post("/v1/load_lora_adapter", json=body).status_code

    body = {"lora_name": "mine", "lora_path": "l1"}
    assert server.http().post("/v1/load_lora_adapter", json=body).status_code == 401
    assert load("l1") == 200 and answer(server, "mine") == direct("l1")
    assert load(folder / "l2") == 400
    assert load(folder / "l2", load_inplace=True) == 200 and answer(server, "mine") == direct("l2")
    assert answer(server, "mine:0.5+l1:0.5") == direct({"l2": 0.5, "l1": 0.5})
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 200
    assert post(server, "mine").status_code == 404
    assert load("l1") == 200 and answer(server, "mine") == direct("l1")
    assert http.delete("/v1/experts/mine").json() == {"name": "mine", "deleted": True}
    assert post(server, "mine").status_code == 404


def change(path: Path, **fields: Any) -> None:
    (path / CONFIG).write_text(json.dumps(json.loads((path / CONFIG).read_text()) | fields))


def change_tensors(path: Path, by: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(path / WEIGHTS)
    save_file({key: by(tensor).contiguous() for key, tensor in tensors.items()}, path / WEIGHTS)


def test_a_spoilt_directory_is_one_line_and_disturbs_nothing(shared: Any, loras: list[Path]) -> None:
    server, folder = shared
    shutil.copytree(loras[0], folder / "good")
    before = answer(server, "good")
    cases: list[tuple[Callable[[Path], object], str]] = [
        (lambda path: os.truncate(path / WEIGHTS, 500), "is not a whole safetensors file"),
        (lambda path: (path / WEIGHTS).rename(path / "adapter_model.bin"), "pickle, which can run code"),
        (lambda path: (path / CONFIG).write_text("{"), "is not a JSON object"),
        (lambda path: (path / "zweave.json").write_text("[]"), "zweave.json is not a JSON object"),
        (lambda path: change(path, use_dora=True), "use_dora is set"),
        (lambda path: change(path, r=10**400), "r must be a number"),
        (lambda path: change(path, r=99999), "adapter_config.json says 99999"),
        (lambda path: change_tensors(path, lambda tensor: tensor * torch.nan), "holds NaN or infinity"),
        (lambda path: change_tensors(path, lambda tensor: tensor.repeat(2, 2)), "has rank 8"),
        (lambda path: change_tensors(path, lambda tensor: tensor.int()), "is of torch.int32"),
        (lambda path: change_tensors(path, wider), "it is for another model"),
    ]
    for index, (spoil, words) in enumerate(cases):
        name = f"bad{index}"
        shutil.copytree(loras[0], folder / name)
        spoil(folder / name)
        body = {"lora_name": "mine", "lora_path": name}
        by_admin = server.http(headers=ADMIN).post("/v1/load_lora_adapter", json=body)
        for told in (post(server, name), by_admin):
            message = told.json()["error"]["message"]
            assert told.status_code == 400 and words in message and "\n" not in message
            assert message.startswith(name) and str(folder) not in message
    assert answer(server, "good") == before and not {"bad0", "mine"} & {*server.engine.experts()}


def wider(tensor: torch.Tensor) -> torch.Tensor:
    """A or B of rank 4 for matrices of 32 rows and columns more."""
    return torch.nn.functional.pad(tensor, (0, 32) if len(tensor) == 4 else (0, 0, 0, 32))


@pytest.fixture(scope="module")
def shared(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("served")
    return start_server(experts=folder, admin_key="admin"), folder


def test_the_norms_of_a_lora_are_what_the_playground_draws(
    shared: Any, save_lora: Callable[..., Any]
) -> None:
    server, folder = shared
    directory, _ = save_lora("z", 3, r=4, lora_alpha=8, merge=False, target_modules=["v_proj"])
    shutil.copytree(directory, folder / "z")
    told = server.http().get("/v1/experts/z/z").json()
    tensors = load_file(directory / WEIGHTS)
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_{}.weight"
    norm = torch.linalg.matrix_norm(2 * tensors[key.format("B")] @ tensors[key.format("A")])
    column = told["matrices"].index("v_proj")
    assert told["kind"] == "lora" and told["values"][1][column] == pytest.approx(float(norm), rel=1e-5)
    assert sum(value is not None for row in told["values"] for value in row) == told["layers"] == 2


def test_the_norms_of_a_compressed_lora_are_its_own_and_not_its_basis(
    start_server: Any, tmp_path: Path
) -> None:
    module, shape = "model.layers.1.self_attn.q_proj", (32, 32)
    generator = torch.Generator().manual_seed(0)
    pair = LoraPair(torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator), 1.0)
    elsewhere = {"model.layers.0.self_attn.q_proj": pair}
    loras = {
        "weak": Lora({module: pair}),
        "strong": Lora({module: replace(pair, scaling=8.0)}),
        "other": Lora(elsewhere),
    }
    shapes = {module: shape, **dict.fromkeys(elsewhere, shape)}
    save_compressed(compress(loras, shapes, rank=4), tmp_path / "many")
    server = start_server()
    server.engine.load_adapters(tmp_path / "many")
    told = {name: server.http().get(f"/v1/experts/{name}/z").json() for name in loras}
    column = told["weak"]["matrices"].index("q_proj")
    norm = float(torch.linalg.matrix_norm(pair.b @ pair.a))
    wanted = {"weak": [None, norm], "strong": [None, 8 * norm], "other": [norm, None]}
    for name, norms in wanted.items():
        found = [row[column] for row in told[name]["values"]]
        assert [value is None for value in found] == [value is None for value in norms], name
        assert [*filter(None, found)] == pytest.approx([*filter(None, norms)], rel=1e-4), name
