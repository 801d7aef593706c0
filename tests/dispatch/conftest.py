"""The engine that dispatchers choose experts of."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from zweave import Engine


@pytest.fixture
def make_engine(tiny_engine: Callable[..., Engine]) -> Iterator[Callable[..., Engine]]:
    """`tiny_engine` with "tail-a" and "tail-b" of scope after_prompt; every block and slot must come back."""
    made: list[Engine] = []

    def make(dtype: str = "float32", **options: object) -> Engine:
        engine = tiny_engine(dtype, **{"kv_tokens": 1024, **options})
        for name in ("a", "b"):
            expert = engine.bank.registered(name).read()
            engine.load_expert(f"tail-{name}", replace(expert, scope="after_prompt"))
        late = engine.bank.registered("late").read()
        engine.load_expert("late-b", replace(late, z={name: 2 - z for name, z in late.z.items()}))
        made.append(engine)
        return engine

    yield make
    for engine in made:
        assert not engine.has_work
        assert engine.stats().blocks_in_use == 0
        assert not engine.bank._ref_counts
