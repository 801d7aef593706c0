"""schemathesis on the API's own description: neither what it allows nor what it does not ends in a fault."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from zweave.server.app import create_app

ADMIN = {"Authorization": "Bearer admin"}


@pytest.mark.slow
def test_every_operation(attacked: Any, check_answer: Callable[[int, str], None]) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install schemathesis")
    document = create_app(attacked.engine, attacked.settings).openapi()
    asked = set()

    @settings(suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        answer = case.call(base_url=attacked.url, headers=ADMIN)
        asked.add((case.path, case.method.lower()))
        check_answer(answer.status_code, answer.text)

    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        for mode in schemathesis.GenerationMode:
            try:
                given(found.ok().as_strategy(generation_mode=mode))(ask)()
            except Unsatisfiable:
                continue  # nothing is wrong for an operation that takes nothing
    assert asked == {(path, method) for path, calls in document["paths"].items() for method in calls}
