"""One command for a machine with a GPU and no network: builds, tests and measures, in under nine minutes.

    python bench/gpu.py --out DIR          (or: zweave bench gpu --out DIR)

Uses the standard library alone, since nothing is built when it starts. Every part has a limit of time and writes its
output, line of JSON and figure into DIR; summary.json tells how each went. A part that fails, or whose tool is not
installed, does not stop the next. In the end it prints what was measured beside what was predicted, and draws the
roofline of all parts.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEADLINE = 530.0
# Kept of it for what is told in the end.
SUMMARY_SECONDS = 20.0
SUMMARY = "summary.json"
ZWEAVE = (sys.executable, "-m", "zweave.cli.main")
NOT_INSTALLED = "not installed"
# Where CUDA puts its tools, on the path or not.
CUDA_TOOLS = "/usr/local/cuda/bin"
STAGES = ("qkv", "o", "gate_up", "down")
# Nothing is timed, so the kernels' outputs are checked side by side, and what is compiled for that serves the benches.
CHECKS = (
    *(
        (f"check-{stage}", f"gpu-products --check --stages {stage} --tokens 1,64,128,512 --stop-after 40")
        for stage in STAGES
    ),
    ("check-attention", "gpu-attention --check --batch 1,64 --context 256,1024 --prompt 512 --stop-after 40"),
    *(
        (f"check-shapes-{seed}", f"gpu-check --cases 4 --seed {4 * seed} --stop-after 25")
        for seed in range(3)
    ),
)
# Name, seconds that it may take, arguments of `zweave bench`. What tells most comes first.
BENCHES = (
    ("step-llama3-8b", 90.0, "gpu-step --shapes llama3-8b --seconds 0.5 --stop-after 65"),
    ("products", 60.0, "gpu-products --tokens 1,16,64,512,2048 --splits 1,2 --stop-after 40"),
    ("attention", 40.0, "gpu-attention --stop-after 25"),
    ("engine-smollm2", 70.0, "gpu-engine --random smollm2 --rounds 2"),
)
LATE_BENCHES = (
    (
        "peers-smollm2",
        40.0,
        "gpu-engine --random smollm2 --providers always,transformers,peft --requests 64 --experts 8 --new 64 "
        "--sequences 64 --rounds 1",
    ),
    ("products-more", 20.0, "gpu-products --tokens 8,32,48,96,128,256,8192 --stop-after 12"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """A command.

    seconds: that it may take.
    figures: whether it is a bench, whose last line is JSON.
    tool: the program that the command begins with or starts, where it may not be installed.
    environment: variables that it is given.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    figures: bool = False
    tool: str = ""
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """status: 0, another exit status, or a word: "too long", "no time left", "not installed", "cannot start: ..."."""

    name: str
    status: int | str
    seconds: float


def parts(out: Path, rebuild: bool) -> list[tuple[Part, ...]]:
    """What is run, in this order; parts in one tuple run at once."""
    # Needs nothing that is built; its folders must not stand on the path of anything else.
    roofs = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from bench.kernels.gpu_roofs import main; sys.exit(main())"
    pip = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", ".")
    build = (Part("build", pip, 180),) if rebuild else ()
    # Other files may need packages that are not installed.
    files = [
        str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()
    ]
    tests = (sys.executable, "-m", "pytest", "--import-mode=importlib", "-m", "gpu and not slow", *files)
    return [
        (*build, Part("roofs", (sys.executable, "-c", roofs), 30, figures=True)),
        (
            Part("tests", tests, 80),
            *(_bench(name, 80, options) for name, options in CHECKS),
        ),
        *((_bench(name, seconds, options, out),) for name, seconds, options in BENCHES),
        tuple(_sanitized(tool) for tool in ("memcheck", "racecheck")),
        (_bench("profile", 40, f"gpu-profile --kernels 2 --limit 19 --results {out}"),),
        *((_bench(name, seconds, options, out),) for name, seconds, options in LATE_BENCHES),
    ]


def _bench(name: str, seconds: float, options: str, out: Path | None = None) -> Part:
    """out: where its figure goes, if it has one."""
    plot = ("--plot", str(out / f"{name}.png")) if out else ()
    tool = "ncu" if name == "profile" else ""
    return Part(name, (*ZWEAVE, "bench", *options.split(), *plot), seconds, figures=True, tool=tool)


def _sanitized(check: str) -> Part:
    """The kernels on one shape each under a tool of compute-sanitizer."""
    options = ("--tool", check, "--error-exitcode", "9")
    command = ("compute-sanitizer", *options, *ZWEAVE, "bench", "gpu-check", "--cases", "1", "--eager")
    # Each tensor in memory of its own, outside which nothing may be touched.
    alone = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    return Part(check, command, 40, figures=True, tool="compute-sanitizer", environment=alone)


def summary_part(out: Path) -> Part:
    command = (*ZWEAVE, "bench", "gpu-summary", "--results", str(out), "--plot", str(out / "roofline.png"))
    return Part("predictions", command, SUMMARY_SECONDS, figures=True)


def needs_build() -> bool:
    """Whether the extension is missing, or older than a source of it."""
    built = [path.stat().st_mtime for path in (ROOT / "kernels").glob("_C.*.so")]
    sources = [path.stat().st_mtime for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    sources.append((ROOT / "setup.py").stat().st_mtime if (ROOT / "setup.py").is_file() else 0.0)
    importable = subprocess.run([sys.executable, "-c", "import zweave.kernels"], cwd="/", capture_output=True)
    return importable.returncode != 0 or not built or max(built) < max(sources)


def find_tool(name: str) -> str | None:
    """Where a program is, on the path or where CUDA puts it."""
    return shutil.which(name) or shutil.which(name, path=CUDA_TOOLS)


def run_parts(groups: Sequence[Sequence[Part]], out: Path, deadline: float = DEADLINE) -> list[Done]:
    """Runs each group's parts at once, each within its limit and what is left until the deadline, seconds from now."""
    end = time.monotonic() + deadline
    done: list[Done] = []
    for group in groups:
        for part in _run_group(group, out, end):
            done.append(part)
            print(f"{part.name}: {part.status}, {part.seconds:.0f} s", flush=True)
    return done


def _run_group(group: Sequence[Part], out: Path, end: float) -> Iterator[Done]:
    """Yields each part as it ends; end: when the last must, as `time.monotonic` tells it."""
    running: list[_Running] = []
    try:
        for part in group:
            started = _start(part, out, end)
            if isinstance(started, _Running):
                running.append(started)
            else:
                yield Done(part.name, started, 0.0)
        while running:
            for each in [each for each in running if each.is_over()]:
                yield each.finish(out)
                running.remove(each)
            time.sleep(0.02)
    finally:
        for each in running:
            each.kill()


@dataclass(frozen=True, slots=True)
class _Running:
    """A part that was started; limit: when it must end."""

    part: Part
    process: subprocess.Popen[bytes]
    start: float
    limit: float

    def is_over(self) -> bool:
        return self.process.poll() is not None or time.monotonic() > self.limit

    def finish(self, out: Path) -> Done:
        status = self.process.poll()
        self.kill()
        if self.part.figures:
            _take_json(out / f"{self.part.name}.txt", out / f"{self.part.name}.json")
        seconds = time.monotonic() - self.start
        return Done(self.part.name, "too long" if status is None else status, seconds)

    def kill(self) -> None:
        """Compilers that it started go with it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _start(part: Part, out: Path, end: float) -> "_Running | str":
    """Starts a part, its output into a file; why it does not, if it does not."""
    tool = find_tool(part.tool) if part.tool else None
    if part.tool and tool is None:
        return NOT_INSTALLED
    start = time.monotonic()
    if end - start <= 1:
        return "no time left"
    command = (tool, *part.command[1:]) if tool and part.command[0] == part.tool else part.command
    # Without the checkout on the path: its folders have the names of other packages.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PYTHONSAFEPATH": "1"
    }
    environment |= dict(part.environment)
    with (out / f"{part.name}.txt").open("w") as output:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return f"cannot start: {error.strerror}"
    return _Running(part, process, start, min(start + part.seconds, end))


def _take_json(log: Path, target: Path) -> None:
    """Moves the line of JSON out of a bench's output; what remains is the table."""
    lines = log.read_text(errors="replace").splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith('{"bench"'):
            target.write_text(lines.pop(index) + "\n")
            break
    log.write_text("\n".join(lines) + "\n")


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
    problem = _problem(args.out)
    if problem:
        print(f"bench gpu: {problem}", file=sys.stderr)
        return 1
    start = time.monotonic()
    out = args.out.resolve()
    listed = parts(out, needs_build())
    done = run_parts(listed, out, DEADLINE - SUMMARY_SECONDS - (time.monotonic() - start))
    done += run_parts([(summary_part(out),)], out, DEADLINE - (time.monotonic() - start))
    (out / SUMMARY).write_text(json.dumps([asdict(part) for part in done], indent=1) + "\n")
    print((out / "predictions.txt").read_text() if (out / "predictions.txt").is_file() else "", end="")
    return 0 if all(part.status in (0, NOT_INSTALLED) for part in done) else 1


def _problem(out: Path) -> str:
    """What is wrong with where it would run and write, in a line; makes the folder."""
    if not (ROOT / "setup.py").is_file():
        return "builds and tests a checkout, and this is an installed package"
    if not _has_gpu():
        return "the driver has no CUDA device (nvidia-smi -L lists them): run it where there is one"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"cannot make {out}: {error.strerror}"
    return f"{out} is not empty: give a new directory" if any(out.iterdir()) else ""


def _has_gpu() -> bool:
    """Whether the driver has a device; nothing heavy is loaded for it."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
