"""One command for a machine with a GPU and no network: builds, tests and measures, in under nine minutes.

    python bench/gpu.py --out DIR          (or: zweave bench gpu --out DIR)

Uses the standard library alone, since nothing is built when it starts. Every part has a limit of time and writes its
output, line of JSON and figure into DIR; summary.json tells how each went. A part that fails does not stop the next.
In the end it prints what was measured beside what was predicted.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEADLINE = 530.0
SUMMARY = "summary.json"
ZWEAVE = (sys.executable, "-m", "zweave.cli.main")
# Name, seconds that it may take, arguments of `zweave bench`. What tells most comes first.
BENCHES = (
    ("step-llama3-8b", 160.0, "gpu-step --shapes llama3-8b --seconds 0.7 --stop-after 120"),
    ("engine-smollm2", 90.0, "gpu-engine --random smollm2 --rounds 2"),
    (
        "linear-llama3-8b",
        100.0,
        "gpu-linear --shapes llama3-8b --tokens 1,16,64,512 --experts 1,64 --seconds 0.7",
    ),
    ("step-smollm2", 60.0, "gpu-step --shapes smollm2 --seconds 0.3 --stop-after 40"),
    ("linear-smollm2", 50.0, "gpu-linear --shapes smollm2 --tokens 1,16,64,512 --experts 1,64 --seconds 0.3"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """A command.

    seconds: that it may take.
    figures: whether it is a bench, whose last line is JSON.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    figures: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """status: 0, another exit status, "too long", or "no time left"."""

    name: str
    status: int | str
    seconds: float


def parts(out: Path, rebuild: bool) -> list[Part]:
    """What is run, in this order."""
    pip = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", ".")
    # Other files may need packages that are not installed.
    files = [
        str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()
    ]
    tests = (sys.executable, "-m", "pytest", "--import-mode=importlib", "-m", "gpu and not slow", *files)
    build = [Part("build", pip, 180)] if rebuild else []
    return [
        *build,
        Part("tests", tests, 70),
        *(_bench(out, *bench) for bench in BENCHES),
    ]


def _bench(out: Path, name: str, seconds: float, options: str) -> Part:
    command = (*ZWEAVE, "bench", *options.split(), "--plot", str(out / f"{name}.png"))
    return Part(name, command, seconds, figures=True)


def needs_build() -> bool:
    """Whether the extension is missing, or older than a source of it."""
    built = [path.stat().st_mtime for path in (ROOT / "kernels").glob("_C.*.so")]
    sources = [path.stat().st_mtime for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    sources.append((ROOT / "setup.py").stat().st_mtime if (ROOT / "setup.py").is_file() else 0.0)
    importable = subprocess.run([sys.executable, "-c", "import zweave.kernels"], cwd="/", capture_output=True)
    return importable.returncode != 0 or not built or max(built) < max(sources)


def run_parts(listed: Sequence[Part], out: Path, deadline: float = DEADLINE) -> list[Done]:
    """Runs each part within its limit and what is left until the deadline, seconds from now."""
    start = time.monotonic()
    done = []
    for part in listed:
        left = deadline - (time.monotonic() - start)
        done.append(
            _run(part, out, min(part.seconds, left)) if left > 1 else Done(part.name, "no time left", 0.0)
        )
        print(f"{part.name}: {done[-1].status}, {done[-1].seconds:.0f} s", flush=True)
    return done


def _run(part: Part, out: Path, limit: float) -> Done:
    log = out / f"{part.name}.txt"
    start = time.monotonic()
    status: int | str
    # Without the checkout on the path: its folders have the names of other packages.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PYTHONSAFEPATH": "1"
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = "too long"
        finally:
            # Compilers that it started go with it.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if part.figures:
        _take_json(log, out / f"{part.name}.json")
    return Done(part.name, status, time.monotonic() - start)


def _take_json(log: Path, target: Path) -> None:
    """Moves the line of JSON out of a bench's output; what remains is the table."""
    lines = log.read_text(errors="replace").splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith('{"bench"'):
            target.write_text(lines.pop(index) + "\n")
            break
    log.write_text("\n".join(lines) + "\n")


def predictions(out: Path) -> list[str]:
    """A line for each row of a bench that predicts its time."""
    lines = []
    for path in sorted(out.glob("*.json")):
        if path.name == SUMMARY:
            continue
        for row in json.loads(path.read_text())["rows"]:
            if row.get("predicted_seconds"):
                lines.append(_prediction(path.stem, row))
    return lines


def _prediction(part: str, row: dict[str, Any]) -> str:
    what = ", ".join(f"{key} {row[key]}" for key in ("batch", "context", "experts") if key in row)
    predicted = f"predicted {1e3 * row['predicted_seconds']:.3f} ms for {row['predicted_for']}"
    if row.get("seconds") is None:
        return f"{part}: {row['provider']}, {what}: {row['status']}, {predicted}"
    measured = f"measured {1e3 * row['seconds']:.3f} ms"
    return (
        f"{part}: {row['provider']}, {what}: {measured}, {predicted}, {row['vs_predicted']:.2f} times as long"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="where everything is written: a new one, or empty",
    )


def run(args: argparse.Namespace) -> int:
    """Runs all parts; 1 if any did not end well."""
    if not (ROOT / "setup.py").is_file():
        print("bench gpu: builds and tests a checkout, and this is an installed package", file=sys.stderr)
        return 1
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"bench gpu: cannot make {args.out}: {error.strerror}", file=sys.stderr)
        return 1
    out = args.out.resolve()
    if any(out.iterdir()):
        print(f"bench gpu: {out} is not empty: give a new directory", file=sys.stderr)
        return 1
    done = run_parts(parts(out, needs_build()), out)
    (out / SUMMARY).write_text(json.dumps([asdict(part) for part in done], indent=1) + "\n")
    lines = predictions(out)
    (out / "predictions.txt").write_text("".join(f"{line}\n" for line in lines))
    for line in lines:
        print(line)
    return 0 if all(part.status == 0 for part in done) else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
