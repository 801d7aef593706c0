"""How long do steps take while adapters are loaded?"""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from zweave.adapters.component_pool import pages_of_rank
from zweave.engine import Engine
from zweave.engine.gc_heap import freeze_heap
from zweave.kernels import PAGE
from zweave.request import Request

from ...harness.report import Row
from ..engine_server import EngineServer
from ..fixtures import Fixtures
from ..peers.lora_files import write_lora
from ..workload import Workload

NAME = "zweave step"
# Adapters of the requests, and adapters loaded while these are answered.
SERVED, LOADED = 8, 4
# Seconds from one load to the next.
_PAUSE = 0.1
# Seconds between two looks for a request when there is none.
_IDLE = 0.001


@dataclass(slots=True)
class _Pass:
    """All requests, answered once.

    steps: seconds of the steps after the first tokens.
    loads: seconds of the loads.
    """

    answers: list[list[int]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)


def loading_rows(fixtures: Fixtures, workload: Workload, rank: int, rounds: int, folder: Path) -> list[Row]:
    """A row of the steps without loads, and one of those while adapters are loaded, in turn.

    Each loaded adapter gets a request of one token, which makes it resident if it is not. The heap is frozen, as
    `zweave serve` does.
    """
    count = SERVED + LOADED * rounds
    shapes = fixtures.config.adapted_shapes()
    files = [write_lora(folder / f"loading-{index}", shapes, index, rank) for index in range(count)]
    components = PAGE * pages_of_rank(rank) * count
    engine = Engine(
        fixtures.checkpoint.directory, dtype=fixtures.dtype, prefix_cache=False, lora_components=components
    )
    for index, file in enumerate(files[:SERVED]):
        engine.load_expert(f"served{index}", file)
    server = EngineServer(engine, workload, engine.experts())
    _answer(server, [])
    freeze_heap()
    quiet, busy = _Pass(), _Pass()
    wrong = 0
    for index in range(rounds):
        start = SERVED + LOADED * index
        without, during = _answer(server, []), _answer(server, files[start : start + LOADED])
        wrong += without.answers != during.answers
        for whole, part in ((quiet, without), (busy, during)):
            whole.steps += part.steps
            whole.loads += part.loads
    typical = statistics.median(quiet.steps)
    rows = [_row("no load", quiet, typical, rank), _row("while loading", busy, typical, rank)]
    if wrong:
        rows[1] |= {"status": "wrong", "note": f"the answers of {wrong} of {rounds} rounds differ"}
    return rows


def _row(state: str, steps: _Pass, typical: float, rank: int) -> Row:
    return {
        "provider": NAME, "work": state, "status": "ok", "rank": rank, "adapters": SERVED, "error": 0.0,
        "seconds": statistics.median(steps.steps), "rounds": len(steps.steps), "fastest": min(steps.steps),
        "slowest": max(steps.steps), "slowest_ratio": max(steps.steps) / typical,
        "load_seconds": statistics.median(steps.loads) if steps.loads else None,
    }  # fmt: skip


def _answer(server: EngineServer, files: Sequence[Path]) -> _Pass:
    """Answers all requests; files are loaded meanwhile, by a thread of its own, as a server does."""
    engine, done = server.engine, _Pass()
    ids = [engine.add(request) for request in server.requests(server.workload.new)]
    answers: dict[int, list[int]] = {request_id: [] for request_id in ids}
    loaded: deque[str] = deque()
    loader = Thread(target=_load, args=(engine, files, loaded, done.loads))
    begun, ended = False, 0
    while ended < len(ids) or loader.is_alive() or loaded:
        while loaded:
            prompt = server.workload.prompts(engine.model.config)[0][:1]
            engine.add(Request(prompt, expert=loaded.popleft(), max_tokens=1, ignore_eos=True))
        if not engine.has_work:
            # A server's thread sleeps then, too, and leaves the interpreter to the loader.
            time.sleep(_IDLE)
            continue
        start = time.perf_counter()
        deltas = engine.step()
        if begun and ended < len(ids):
            done.steps.append(time.perf_counter() - start)
        for delta in deltas:
            if delta.request_id in answers:
                answers[delta.request_id] += delta.token_ids
                ended += delta.result is not None
        if not begun and all(answers.values()):
            begun = True
            loader.start()
    while engine.has_work:
        engine.step()
    done.answers = list(answers.values())
    return done


def _load(engine: Engine, files: Sequence[Path], loaded: "deque[str]", seconds: list[float]) -> None:
    for file in files:
        start = time.perf_counter()
        engine.load_expert(file.name, file)
        seconds.append(time.perf_counter() - start)
        loaded.append(file.name)
        time.sleep(_PAUSE)
