"""The layers of the code: imports point downwards, and no circle closes, not even for type checking."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"zweave": ROOT / "runtime", "zweave.kernels": ROOT / "kernels", "zweave.bench": ROOT / "bench"}

# Top to bottom: a part imports from parts further down. What stands in one line does not import each other.
LAYERS = (
    ("zweave.cli",),
    ("zweave.bench",),
    ("zweave.integrations.ray",),  # a way to start the server, unlike the others
    ("zweave.options",),
    ("zweave.server",),
    ("zweave.search", "zweave.dispatch"),
    ("zweave.evaluation", "zweave.quantization"),
    ("zweave.engine",),
    ("zweave.trace",),
    ("zweave.scheduler",),
    ("zweave.model", "zweave.request"),
    ("zweave.describe",),
    ("zweave.train", "zweave.integrations", "zweave.kv_cache", "zweave.dispatcher"),
    ("zweave.tasks", "zweave.experts"),
    ("zweave.adapters",),
    ("zweave.decomposition", "zweave.text"),
    ("zweave.planner", "zweave.checkpoint"),
    ("zweave.io",),
    ("zweave.kernels",),
    ("zweave.validation", "zweave.device", "zweave.step_turns"),
    ("zweave.errors", "zweave.names", "zweave.version", "zweave._moved"),
)
LEVEL = {part: len(LAYERS) - index for index, parts in enumerate(LAYERS) for part in parts}
# The kernels stand alone: whoever wants the ops gets no runtime with them.
APART = {"zweave.kernels": {"zweave.kernels"}}


def modules() -> dict[str, Path]:
    """Every module by its import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in [*folder.rglob("*.py"), *folder.rglob("*.pyi")]:  # the extension by its stub
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


MODULES = modules()


def imported(module: str, path: Path) -> Iterator[str]:
    """The modules of the project that a module imports, wherever in it and for whatever purpose."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                target = f"{base}.{alias.name}"
                if target in MODULES:
                    yield target
                elif base in MODULES:
                    yield base


IMPORTS = {module: sorted(set(imported(module, path)) - {module}) for module, path in MODULES.items()}


def part_of(module: str) -> str:
    """The part of LAYERS that a module belongs to; the package itself belongs to none."""
    return next((part for part in LEVEL if module == part or module.startswith(part + ".")), "")


def test_every_module_has_a_layer():
    assert [module for module in MODULES if not part_of(module) and module != "zweave"] == []


def test_imports_point_downwards():
    wrong = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target in targets
        if (one := part_of(module))
        and (other := part_of(target)) != one
        and LEVEL.get(other, 99) >= LEVEL[one]
    ]
    assert wrong == []


def test_the_kernels_import_no_runtime():
    wrong = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target in targets
        if part_of(target) not in APART.get(part_of(module), LEVEL)
    ]
    assert wrong == []


def test_no_circle():
    try:
        list(TopologicalSorter(IMPORTS).static_order())
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


def test_imports_are_relative_within_runtime_and_within_kernels():
    """So that an editor follows them in a checkout that is not installed, where no folder is called zweave."""
    wrong = []
    for module, path in MODULES.items():
        own = next(name for name in ("zweave.kernels", "zweave.bench", "zweave") if module.startswith(name))
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and not node.level
                and (node.module or "").startswith("zweave")
            ):
                part = next(
                    (p for p in ("zweave.kernels", "zweave.bench") if str(node.module).startswith(p)),
                    "zweave",
                )
                if part == own:
                    wrong.append(f"{module}: from {node.module} import ...")
    assert wrong == []
