"""Two replicas under Ray Serve: what they answer, which of them does, and that one is enough."""

import importlib
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from zweave import Engine, Request
from zweave.checkpoint import ModelConfig
from zweave.cli.parser import make_parser
from zweave.errors import ZweaveError
from zweave.experts import Expert

PACKAGE = "zweave.integrations.ray"
BODY = {"model": "mine", "prompt": "hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
OPTIONS = {"dtype": "float32", "kv_tokens": "1024"}  # as they come from a command line


def test_without_ray_it_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ZweaveError, match=r"pip install 'zweave\[ray\]'"):
        importlib.import_module(PACKAGE)


@pytest.fixture(scope="module")
def arguments() -> Any:
    """The class."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'zweave[ray]'")
    return importlib.import_module(f"{PACKAGE}.arguments").Arguments


def test_the_options_of_serve_are_all_there(arguments: Any) -> None:
    of_a_process = {"host", "port", "run"}
    parsed = vars(make_parser(["serve"]).parse_args(["serve"]))
    options = vars(arguments().options())
    assert {name: options.get(name, "missing") for name in parsed.keys() - of_a_process} == {
        name: value for name, value in parsed.items() if name not in of_a_process
    }


def test_arguments_are_checked_before_a_replica_starts(arguments: Any, tmp_path: Path) -> None:
    from zweave.integrations.ray import app

    one = arguments.model_validate({"alias": "x=a:0.5", "max_sequences": "8", "max_replicas": "3"})
    deployment = app(one)._bound_deployment
    assert deployment.max_ongoing_requests == 16
    autoscaling = deployment._deployment_config.autoscaling_config
    assert (autoscaling.min_replicas, autoscaling.max_replicas) == (1, 3)
    assert autoscaling.target_ongoing_requests == 8
    for wrong, words in (
        ({"experts": "here"}, "here is no absolute path"),
        ({"expert": "x"}, "Extra inputs"),
        ({"min_replicas": "no"}, "valid integer"),
    ):
        with pytest.raises(ValueError, match=words):
            arguments.model_validate(wrong)
    with pytest.raises(ZweaveError, match="is no directory"):
        app(arguments(experts=tmp_path / "nowhere"))


@dataclass
class Cluster:
    """Two replicas behind `http`, and where Ray tells Prometheus about them."""

    http: httpx.Client
    metrics_url: str
    expected: str

    def ask(self) -> str:
        """Has a replica answer as the engine does; its name."""
        told = self.http.post("/v1/completions", json=BODY)
        assert told.status_code == 200, told.text
        assert told.json()["choices"][0]["text"] == self.expected
        return told.headers["x-replica"]


@pytest.fixture(scope="module")
def cluster(
    arguments: Any,
    tiny_model: Callable[..., Path],
    random_expert: Callable[..., Expert],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    import ray
    from ray import serve

    from zweave.integrations.ray import app

    model, experts = tiny_model("llama", vocab_size=96), tmp_path_factory.mktemp("experts")
    expert = random_expert(ModelConfig.from_directory(model).adapted_shapes(), seed=1)
    expert.save(experts / "mine.safetensors")
    engine = Engine(model, dtype="float32", kv_tokens=1024)
    engine.load_expert("mine", expert)
    expected = engine.generate(Request("hello", expert="mine", max_tokens=8, ignore_eos=True))[0].text
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            num_cpus=2,
            object_store_memory=80 << 20,
            include_dashboard=False,
            log_to_driver=False,
            _system_config={"metrics_report_interval_ms": 500},
        )
        try:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            named = {"model": str(model), "experts": str(experts), **OPTIONS}
            replicas = {"min_replicas": "2", "max_replicas": "2", "num_cpus": "0.5"}
            serve.run(app(arguments.model_validate(named | replicas)))
            node = ray.nodes()[0]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
                url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                yield Cluster(http, url, expected)
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.mark.slow
def test_both_replicas_answer_as_the_engine_does(cluster: Cluster) -> None:
    answered = Counter[str]()
    while len(answered) < 2:
        answered[cluster.ask()] += 1
        assert answered.total() < 200
    with cluster.http.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as stream:
        answered[stream.headers["x-replica"]] += 1
        events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert len(events) > 3 and events.pop() == "[DONE]"
    streamed = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    assert streamed == cluster.expected
    assert counted(cluster, answered) == answered


def counted(cluster: Cluster, wanted: Counter[str]) -> Counter[str]:
    """Requests under an expert by replica, as Ray's endpoint tells, which hears of them every ten seconds."""
    end = time.monotonic() + 30
    found: Counter[str] = Counter()
    while found != wanted and time.monotonic() < end:
        time.sleep(0.5)
        text = httpx.get(cluster.metrics_url, trust_env=False).text
        found = Counter(
            {
                sample.labels["replica"]: int(sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == "ray_zweave_requests_total" and sample.labels["kind"] == "expert"
            }
        )
    return found


@pytest.mark.slow
def test_experts_come_from_the_directory_alone(cluster: Cluster) -> None:
    told = cluster.http.post("/v1/experts?name=x", content=b"")
    assert told.status_code == 403
    assert "put NAME.safetensors into the directory" in told.json()["error"]["message"]


@pytest.mark.slow
def test_requests_go_on_when_a_replica_is_killed(cluster: Cluster) -> None:
    import ray

    killed = cluster.ask()
    ray.kill(ray.get_actor(f"SERVE_REPLICA::default#zweave#{killed}", namespace="serve"))
    assert killed not in {cluster.ask() for _ in range(20)}
    end = time.monotonic() + 30
    names: set[str] = set()
    while len(names) < 2:
        names.add(cluster.ask())
        assert time.monotonic() < end
    assert killed not in names
