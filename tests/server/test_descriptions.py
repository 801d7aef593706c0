"""Experts that clients describe in place of naming them."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from zweave.checkpoint import resolve_model
from zweave.describe.describer import Describer
from zweave.describe.generator import Generator, GeneratorConfig
from zweave.describe.generator_file import TrainedGenerator
from zweave.describe.tasks.hidden_task import BARE
from zweave.describe.token_states import TokenStates
from zweave.dispatch import FixedDispatcher
from zweave.errors import ZweaveError

TEXT = "Say yes if it is good."


class Lengths:
    """An encoder that knows how long a text is."""

    name, width = "lengths", 4

    def encode(self, texts: Sequence[str]) -> TokenStates:
        states = torch.tensor([[[1.0, len(text), len(text) % 3, len(text) % 7]] for text in texts])
        return TokenStates(states, torch.ones(len(texts), 1, dtype=torch.bool))


def asked(server: Any, model: str) -> Any:
    body = {"model": model, "prompt": "x", "max_tokens": 3, "temperature": 0, "logprobs": 1}
    return server.http().post("/v1/completions", json=body)


@pytest.fixture(scope="module")
def start_describing(start_server: Any, tiny_model: Callable[..., Path]) -> Callable[..., Any]:
    """`start_describing(**settings)`: a server with a random generator."""
    model = str(tiny_model("llama", vocab_size=96))
    return lambda **settings: _with_generator(start_server(**settings), model)


@pytest.fixture(scope="module")
def describing(start_describing: Callable[..., Any]) -> Any:
    return start_describing()


def _with_generator(server: Any, directory: str) -> Any:
    model = server.engine.model
    ranks = {name: min(shape) for name, shape in model.config.adapted_shapes().items()}
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(4, task=16, code=8), ranks).eval()
    torch.nn.init.normal_(generator.parts[0].basis)
    digest = resolve_model(directory).digest()
    trained = TrainedGenerator(generator, "lengths", digest, BARE, ["a"], torch.ones(1, 4))
    server.engine._described._describer = Describer(trained, Lengths())
    return server


def test_a_description_answers_as_its_expert_does(describing: Any):
    engine = describing.engine
    engine.load_expert("same", engine.describe(TEXT))
    answers = [asked(describing, model).json() for model in (f"describe:{TEXT}", "same", "base")]
    engine.unload_expert("same")
    described, same, base = (answer["choices"][0]["logprobs"]["token_logprobs"] for answer in answers)
    assert described == same != base


def test_clients_do_not_see_what_others_describe(describing: Any):
    assert asked(describing, f"describe:{TEXT}").status_code == 200
    http = describing.http()
    for path in ("/v1/models", "/v1/experts"):
        assert "described/" not in http.get(path).text and TEXT not in http.get(path).text


def test_the_name_of_what_others_describe_is_nobodys(describing: Any):
    """Of an expert that is there and of one that is not alike: so no answer tells that there is one."""
    choice = asked(describing, f"describe:{TEXT}").json()["choices"][0]
    http, known, none = describing.http(), choice["zweave"]["expert"], "described/0"
    assert known in describing.engine.experts()
    for name in (known, none):
        bodies = [
            {"model": name},
            {"model": f"a:0.5+{name}:0.5"},
            {"model": "base", "expert": name},
            {"model": "auto", "fallback": name},
            {"model": "base", "template": name},
        ]
        found = [http.post("/v1/completions", json={"prompt": "x", **body}) for body in bodies]
        found += [
            http.post("/v1/requests/x/rescale", json={"model": name}),
            http.get(f"/v1/experts/{name}/z"),
        ]
        for answer in found:
            assert answer.status_code == 404
            assert answer.json()["error"]["message"].endswith(": GET /v1/experts lists them")
    assert "described/" not in asked(describing, "xyz").text + asked(describing, known[10:]).text


def test_nobody_loads_under_such_a_name(start_server: Any, tmp_path: Path):
    engine = (server := start_server(admin_key="admin", experts=tmp_path)).engine
    (tmp_path / "described").mkdir()
    engine.bank.expert("a").save(tmp_path / "described/x.safetensors")
    body = (tmp_path / "described/x.safetensors").read_bytes()
    http = server.http(headers={"Authorization": "Bearer admin"})
    sent = http.post("/v1/experts", params={"name": "described/x"}, content=body)
    path = {"lora_name": "described/x", "lora_path": "described/x.safetensors"}
    for answer in (sent, http.post("/v1/load_lora_adapter", json=path)):
        assert answer.status_code == 400 and "under described/ are reserved" in answer.text
    with pytest.raises(ZweaveError, match="under described/ are reserved"):
        engine.load_expert("described/x", engine.bank.expert("a"))
    assert "described/" not in http.get("/v1/models").text


def test_what_cannot_be_described_is_told(describing: Any, server: Any):
    empty, long = asked(describing, "describe: "), asked(describing, "describe:" + "x" * 3000)
    assert (empty.status_code, long.status_code) == (400, 400)
    assert "give one" in empty.text and "at most 2000 characters" in long.text
    without = asked(server, f"describe:{TEXT}")
    assert without.status_code == 404 and "start it with --generator FILE" in without.text


def test_a_description_answers_where_the_dispatcher_finds_no_expert(describing: Any):
    describing.engine.dispatcher = FixedDispatcher(None)
    body = {"prompt": "x", "max_tokens": 3, "temperature": 0, "logprobs": 1}
    http = describing.http()
    described, unsure, base = (
        http.post("/v1/completions", json=body | fields).json()["choices"][0]["logprobs"]
        for fields in (
            {"model": f"describe:{TEXT}"},
            {"model": "auto", "fallback": f"describe:{TEXT}"},
            {"model": "auto"},
        )
    )
    assert described["token_logprobs"] == unsure["token_logprobs"] != base["token_logprobs"]
    named = http.post("/v1/completions", json=body | {"model": "base", "fallback": "a"})
    assert named.status_code == 400 and "is for expert='auto'" in named.text
    assert http.post("/v1/completions", json=body | {"model": "auto", "fallback": "x"}).status_code == 404


def test_a_server_says_whether_it_describes(describing: Any, server: Any):
    kinds = [one.http().get("/v1/models").json()["data"][0]["zweave"] for one in (describing, server)]
    assert kinds == [{"kind": "base", "describes": True}, {"kind": "base"}]


class Waiting(Lengths):
    """An encoder that takes until it may end, or 10 s, and counts the texts."""

    def __init__(self) -> None:
        self.may_end, self.count = threading.Event(), 0

    def encode(self, texts: Sequence[str]) -> TokenStates:
        self.count += 1
        self.may_end.wait(10)
        return super().encode(texts)


def test_descriptions_are_admitted_as_other_requests_are_and_hold_up_none(start_describing: Any):
    many = 36  # more than there are threads that others share
    server = start_describing(max_waiting=many, admin_key="admin")
    encoder = server.engine._described._describer._encoder = Waiting()
    http = server.http(headers={"Authorization": "Bearer admin"})
    body = {"prompt": "x", "max_tokens": 1, "response_format": {"regex": "[a-z]+"}}

    def ask(number: int) -> Any:
        return http.post("/v1/completions", json=body | {"model": f"describe:{number}"})

    with ThreadPoolExecutor(many) as pool:
        answers = pool.map(ask, range(many))
        end = time.monotonic() + 8
        while server.in_work() < many and time.monotonic() < end:
            time.sleep(0.02)
        assert ask(many).status_code == 429
        assert http.delete("/v1/experts/none").status_code == 404
        assert encoder.count == 1
        encoder.may_end.set()
        assert [answer.status_code for answer in answers] == [200] * many
    assert encoder.count == many


def test_nothing_is_made_for_a_body_that_is_refused(start_describing: Any):
    server = start_describing()
    encoder = server.engine._described._describer._encoder = Waiting()
    http, model = server.http(), {"model": f"describe:{TEXT}"}
    bodies = [{"prompt": []}, {"prompt": "x", "logprobs": 99}, {"prompt": "x", "max_tokens": -1}]
    told = [http.post("/v1/completions", json=model | body).status_code for body in bodies]
    assert told == [400] * len(bodies)
    assert http.post("/v1/requests/none/rescale", json=model).status_code == 404
    assert encoder.count == 0


def test_an_answer_goes_on_under_what_is_described(start_describing: Any):
    server = start_describing()
    http, model, gate = server.http(), {"model": f"describe:{TEXT}"}, server.hold()
    body = {"prompt": "x", "max_tokens": 4, "ignore_eos": True, "stream": True}
    gate.release()
    with http.stream("POST", "/v1/completions", json=body) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
        first = json.loads(next(lines).removeprefix("data: "))
        told = server.http().post(f"/v1/requests/{first['id']}/rescale", json=model)
        gate.release(10000)
        assert len([*lines]) > 0
    assert told.status_code == 200
    assert told.json()["expert"] == server.engine.load_description(TEXT)
