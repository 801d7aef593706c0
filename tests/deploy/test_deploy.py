"""What the files of deploy/ name is there: metrics, paths, options."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from zweave import Request
from zweave.cli.parser import make_parser

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def test_the_dashboard_asks_for_metrics_that_there_are(tiny_engine: Any) -> None:
    from zweave.server.answers.admission import Admission
    from zweave.server.metrics import Metrics

    engine = tiny_engine()
    metrics = Metrics(engine, Admission(1))
    metrics.on_result(engine.generate(Request([3, 4], max_tokens=1))[0], "base", 1.0)
    families = text_string_to_metric_families(metrics.text().decode())
    exported = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    panels = json.loads((DEPLOY / "grafana/dashboards/zweave.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    named = {name for text in expressions for name in re.findall(r"zweave_\w+", text)}
    assert named and named <= exported.keys()
    for text in expressions:
        for labels in re.findall(r"by \((\w+)\)", text):
            assert all(labels in exported[name] for name in re.findall(r"zweave_\w+", text))


def test_running_and_waiting_requests_are_counted(tiny_engine: Any) -> None:
    engine = tiny_engine(max_sequences=1)
    for _ in range(3):
        engine.add(Request([3, 4, 5], max_tokens=4, ignore_eos=True))
    engine.step()
    stats = engine.stats()
    assert (stats.requests_running, stats.requests_waiting) == (1, 2)


def test_compose_mounts_what_there_is(compose: dict[str, Any]) -> None:
    mounts = [mount.split(":") for service in compose.values() for mount in service["volumes"]]
    files = [source for source, *_ in mounts if source.startswith(".")]
    assert len(files) == 3 and all((DEPLOY / file).exists() for file in files)
    build = compose["zweave"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert "zweave:8000" in (DEPLOY / "prometheus.yml").read_text()
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    assert "http://prometheus:9090" in source and "uid: prometheus" in source
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana" / home.lstrip("/")).is_file()


def test_the_containers_command_is_understood(compose: dict[str, Any]) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    command = json.loads(re.findall(r"^CMD (.*)$", text, re.M)[-1])
    for words in (command, compose["zweave"]["command"]):
        args = make_parser(words).parse_args(words)
        assert (args.host, args.port, str(args.experts)) == ("0.0.0.0", 8000, "/experts"), shlex.join(words)


def test_the_image_copies_what_the_build_reads() -> None:
    kept = re.findall(r"^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M)
    assert all((DEPLOY.parent / name).exists() for name in kept)
    assert {"runtime", "kernels", "bench", "csrc", "setup.py", "pyproject.toml"} <= set(kept)
