"""Word problems whose answer is a number at the end of a text: GSM8K."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from . import prompts
from .files import read_json_lines, split_pool, task_file
from .task import Sample, Splits, Task

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_CALCULATION = re.compile(r"<<[^>]*>>")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its worked solution, which ends in `#### number`."""

    question: str
    solution: str


def final_number(text: str) -> Decimal | None:
    """The number after the last ####, or else the last number; None where there is none."""
    _, mark, end = text.rpartition("####")
    found = _NUMBER.findall(end if mark else text)
    if not found:
        return None
    try:
        return Decimal((found[0] if mark else found[-1]).replace(",", ""))
    except InvalidOperation:
        return None


def same_number(sample: Sample, text: str) -> float:
    """+1 when the text ends in the number that the answer ends in, else -1."""
    wanted = final_number(sample.answer)
    return 1.0 if wanted is not None and final_number(text) == wanted else -1.0


def problems(path: Path) -> list[Problem]:
    """Reads {"question", "answer"} a line; the calculator's marks are left out."""

    def read(entry: Mapping[str, str]) -> Problem:
        solution = _CALCULATION.sub("", entry["answer"]).strip()
        if "####" not in solution or final_number(solution) is None:
            raise ValueError
        return Problem(entry["question"].strip(), solution)

    return read_json_lines(path, read, "a question and an answer that ends in #### and a number")


def _gsm8k(data: Path | None) -> Splits:
    found = problems(task_file(data, "gsm8k_test.jsonl"))
    return split_pool([Sample(prompts.maths(p.question), p.solution) for p in found])


TASKS = (
    Task(
        "gsm8k",
        "Grade-school word problems (GSM8K)",
        _gsm8k,
        max_tokens=256,
        judge=same_number,
        template=prompts.MATHS,
    ),
)
