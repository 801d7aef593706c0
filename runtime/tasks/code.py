"""Programs judged by their tests: HumanEval and MBPP, in their own formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import prompts
from .files import read_json_lines, task_file
from .sandbox import run_program
from .task import Sample, Splits, Task

# What follows a function in a text that has gone on too long.
_AFTER_FUNCTION = ("\n```", "\ndef ", "\nclass ", "\nif __name__", "\nprint(", "\nassert ")


def passes(sample: Sample, text: str) -> float:
    """+1 when the program, the sample's beginning and the answered text, passes the sample's tests; else -1."""
    program = f"{sample.data['before']}{text}\n"
    return 1.0 if run_program(program, tests=f"{sample.data['tests']}\n").passed else -1.0


def _humaneval(data: Path | None) -> Splits:
    def read(entry: Mapping[str, str]) -> Sample:
        head = entry["prompt"]
        tests = f"{entry['test']}\ncheck({entry['entry_point']})"
        prompt = prompts.code("Complete this function.", head)
        return Sample(prompt, entry["canonical_solution"], {"before": head, "tests": tests})

    what = "a problem of HumanEval"
    return Splits(train=(), test=read_json_lines(task_file(data, "HumanEval.jsonl.gz"), read, what))


def _mbpp(data: Path | None) -> Splits:
    """The parts that its authors made: 11 to 510 test, 511 to 600 validation, from 601 on training."""

    def read(entry: Mapping[str, Any]) -> tuple[int, Sample]:
        tests = "\n".join(entry["test_list"])
        prompt = prompts.code(f"{entry['text']}\nYour code must pass these tests:\n{tests}")
        setup = entry.get("test_setup_code") or ""
        code = entry["code"].replace("\r\n", "\n")
        return int(entry["task_id"]), Sample(prompt, code, {"before": "", "tests": f"{setup}\n{tests}"})

    found = read_json_lines(task_file(data, "mbpp.jsonl"), read, "a problem of MBPP")
    return Splits(
        train=[sample for number, sample in found if number >= 601],
        validation=[sample for number, sample in found if 511 <= number <= 600],
        test=[sample for number, sample in found if 11 <= number <= 510],
    )


TASKS = (
    Task(
        "humaneval",
        "Completes Python functions (HumanEval, all of it held out)",
        _humaneval,
        max_tokens=384,
        stop=_AFTER_FUNCTION,
        judge=passes,
    ),
    Task("mbpp", "Writes Python functions (MBPP)", _mbpp, max_tokens=384, stop=("\n```",), judge=passes),
)
