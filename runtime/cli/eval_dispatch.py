"""`zweave eval --dispatch FILE`: several tasks in one stream, whose experts a dispatcher finds."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ..dispatch.file import DispatcherFile
from ..engine.engine import Engine
from ..errors import ZweaveError
from ..evaluation.dispatched import Labelled, evaluate_dispatch, routing_cells
from ..evaluation.table import print_cells, row_cells
from ..experts.mixture import ExpertChoice
from ..options.engine_options import load_named, parse_expert, stderr
from ..tasks import Sample, Task


def right_choices(items: Sequence[str], tasks: Sequence[Task]) -> dict[str, ExpertChoice]:
    """The right experts of tasks as --right names them."""
    found: dict[str, ExpertChoice] = {}
    for item in items:
        name, separator, expert = item.partition("=")
        if not separator or name not in {task.name for task in tasks}:
            raise ZweaveError(f"--right takes TASK=EXPERT of a task that is evaluated, not {item!r}")
        found[name] = parse_expert(expert)
    return found


def run_dispatch(
    engine: Engine,
    file: DispatcherFile,
    args: argparse.Namespace,
    tasks: Sequence[Task],
    samples: Mapping[str, Sequence[Sample]],
    named: Mapping[str, ExpertChoice],
    facts: Mapping[str, str],
) -> int:
    engine.dispatcher = file.dispatcher(engine, load_named)
    right = _right(engine, named, tasks)
    labelled = [Labelled(task, samples[task.name], right[task.name]) for task in tasks]
    found = evaluate_dispatch(engine, labelled, lambda text: stderr.print(text, style="dim"))
    if args.json:
        print(json.dumps(dict(facts) | asdict(found)))
        return 0
    print_cells(row_cells(found.rows))
    print()
    print_cells(routing_cells(found.routing))
    print()
    print(
        f"dispatched less oracle: {found.difference:+.4f} ± {found.stderr:.4f}; "
        f"{found.first_pass_tokens:.1f} tokens a prompt computed for the first pass alone"
    )
    return 0


def _right(
    engine: Engine, named: Mapping[str, ExpertChoice], tasks: Sequence[Task]
) -> dict[str, ExpertChoice]:
    """The right expert of each task, named or the dispatcher's own for it, loaded."""
    routes = getattr(engine.dispatcher, "routes", None)
    known = {} if routes is None else {label.strip(): choice for label, choice in routes.experts.items()}
    found = dict(named)
    for task in tasks:
        if task.name in found:
            continue
        if task.name not in known:
            raise ZweaveError(
                f"the dispatcher has no label {task.name!r}: say what is right for it, --right {task.name}=EXPERT"
            )
        found[task.name] = known[task.name]
    load_named(engine, found.values())
    for choice in found.values():
        engine.check_expert(choice)
    return found
