"""What a kernel does on each way through its PTX, in the order in which it does it.

A dependent launch (kernels/triton/pdl.py) lets the next kernel start, waits once for the kernel before, and touches
memory that others write only after that, whichever way it goes. A chain of such launches gives what launches one after
the other give, however early each starts: what a kernel reads is whole, and nobody still reads what it overwrites.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

_LABEL = re.compile(r"\s*([\w$]+):")
_STATEMENT = re.compile(r"(?:@(!?[%\w]+)\s+)?([\w.:]+)(.*)", re.DOTALL)
# Loads, stores, copies and sums of memory that is not the program's own. A prefetch is none: it changes nothing, and
# what it brings near is weights.
_ACCESS = re.compile(r"(ld|ldu|st|atom|red|multimem|cp)\.(?!async\.(wait|commit))")
_OWN = re.compile(r"\.(param|local|const)\b|\.shared\b(?!.*\.global)")


@dataclass(frozen=True)
class Instruction:
    """guard: the predicate under which it is executed, or None."""

    guard: str | None
    name: str
    operands: str

    @property
    def touches_memory(self) -> bool:
        """Whether it reads or writes what other kernels may have written, or may read."""
        return bool(_ACCESS.match(self.name)) and not _OWN.search(self.name)


class Program:
    """The instructions of a module's only kernel.

    labels: the instructions that a label stands before; inline assembly uses one name several times.
    """

    def __init__(self, ptx: str) -> None:
        assert ptx.count(".entry") == 1 and ".func" not in ptx
        self.code: list[Instruction] = []
        self.labels: defaultdict[str, list[int]] = defaultdict(list)
        body = re.sub(
            r"//[^\n]*", "", ptx[ptx.index("{", ptx.index(".entry")) + 1 : ptx.index("$L__func_end0")]
        )
        # Directives are lines; braces in lines of their own begin and end inline assembly.
        body = re.sub(r"^\s*([{}]\s*$|\.(loc|pragma)\b.*$)", "", body, flags=re.M)
        for text in body.split(";"):
            while label := _LABEL.match(text):
                self.labels[label[1]].append(len(self.code))
                text = text[label.end() :]
            statement = _STATEMENT.fullmatch(text.strip(" \t\n{"))
            if statement and not statement[2].startswith("."):
                self.code.append(Instruction(*statement.groups()))

    def next(self, i: int) -> list[int]:
        """What may be executed after instruction i."""
        instruction, onward = self.code[i], [i + 1]
        operation = instruction.name.split(".")[0]
        if operation in ("ret", "exit", "trap"):
            return onward if instruction.guard else []
        assert operation not in ("brx", "call"), f"{instruction.name} is not understood"
        if operation != "bra":
            return onward
        target = min(self.labels[instruction.operands.strip()], key=lambda place: abs(place - i))
        return [target, *onward] if instruction.guard else [target]


def check_dependent_launch(ptx: str) -> None:
    """AssertionError for a kernel that breaks the rule."""
    program = Program(ptx)
    # By instruction: how often the ways to it have let the next kernel start, and waited.
    reached: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
    todo = [(0, (0, 0))]
    while todo:
        i, state = todo.pop()
        if state in reached[i]:
            continue
        reached[i].add(state)
        launched, waited = state
        instruction = program.code[i]
        if instruction.name == "griddepcontrol.launch_dependents":
            assert state == (0, 0) and not instruction.guard, "lets the next kernel start late, or twice"
            launched = 1
        elif instruction.name == "griddepcontrol.wait":
            assert state == (1, 0) and not instruction.guard, (
                "waits twice, or before the next kernel may start"
            )
            waited = 1
        elif instruction.touches_memory:
            assert waited, f"{instruction.name} before it has waited"
        elif instruction.name.startswith("tcgen05.alloc"):
            # Programs of the next kernel must not take the tensor memory that one of this has yet to ask for.
            assert not launched, "asks for tensor memory after the next kernel may start"
        elif instruction.name.split(".")[0] in ("ret", "exit"):
            assert state == (1, 1), "ends without having waited"
        todo += [(place, (launched, waited)) for place in program.next(i)]


# By the order of memory: what asks whether all is stored, takes it, and says that a tile is stored.
HANDOVER = {"relaxed": ("ld", "atom"), "acquire": ("atom",), "release": ("atom", "red")}


def is_of(instruction: Instruction, order: str, operations: tuple[str, ...]) -> bool:
    """Whether it is one of the operations on the device's memory in that order."""
    words = instruction.name.split(".")
    return words[0] in operations and order in words and "gpu" in words


def check_handover(ptx: str) -> None:
    """AssertionError for a kernel whose programs hand over tiles (kernels/triton/handover.py) and break its rule.

    All threads have stored before one says so, and no thread reads before one has seen that all is stored.
    """
    program = Program(ptx)
    assert not any(".nc" in instruction.name for instruction in program.code), "reads past what others store"
    for order, operations in HANDOVER.items():
        found = sum(is_of(instruction, order, operations) for instruction in program.code)
        assert found == 1, f"{found} accesses of {order}, wanted one"
    reached: defaultdict[int, set[tuple[bool, bool, bool]]] = defaultdict(set)
    # Whether stores wait for a barrier, loads do, and the program has asked but not seen that all is stored.
    todo = [(0, (False, False, False))]
    while todo:
        i, state = todo.pop()
        if state in reached[i]:
            continue
        reached[i].add(state)
        stored, seen, asked = state
        instruction = program.code[i]
        if instruction.name.startswith(("bar.sync", "barrier.sync")):
            stored, seen = False, False
        elif is_of(instruction, "release", HANDOVER["release"]):
            assert not stored, "says that a tile is stored before all threads have stored"
        elif is_of(instruction, "relaxed", HANDOVER["relaxed"]):
            asked = True
        elif is_of(instruction, "acquire", HANDOVER["acquire"]):
            assert asked, "takes what it has not asked for"
            seen, asked = True, False
        elif instruction.name.startswith("st.global"):
            stored = True
        elif instruction.touches_memory:
            assert not (seen or asked), f"{instruction.name} before all threads know that all is stored"
        todo += [(place, (stored, seen, asked)) for place in program.next(i)]
