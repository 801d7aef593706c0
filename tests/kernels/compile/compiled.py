"""A Triton kernel compiled ahead of time for an architecture, and what it takes there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch

from zweave.kernels.triton.gemm_config import Device
from zweave.kernels.triton.optional_triton import triton

from .ptx import check_dependent_launch
from .sass import listing, stack_accesses_in_loops

# Shared memory that one program may use, in KiB (CUDA programming guide, technical specifications).
SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
VALUE = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
# Bytes of the stack, which addresses may take that wait for the end of a sum.
MOST_STACK = 72
DEVICES = {arch: Device(divmod(arch, 10), 132) for arch in SHARED_MEMORY}
Types: TypeAlias = "str | tuple[Types, ...]"


def leaves(kind: Types, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Where the values of an argument lie, within its tuples."""
    if isinstance(kind, tuple):
        for i, inner in enumerate(kind):
            yield from leaves(inner, (*path, i))
    else:
        yield path


def compiled(
    kernel: Any,
    arch: int,
    types: dict[str, Types],
    constants: dict[str, object],
    aligned: bool,
    **options: int,
) -> Any:
    """Compiles a kernel for an architecture; of dependent launches checks what they do before they wait.

    types: by argument, i32 for the rest.
    constants: by argument; PDL, where there is none, is whether the architecture has dependent launches.
    aligned: to 16, what can be.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    if "PDL" in names:
        constants = {"PDL": arch >= 90} | constants
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    odd = {"T", "S", "A", "E", "P", "H", "eps", "scale", "window"} | set(constants)
    odd |= {name for name in names if name.endswith(("splits", "steps", "tiles", "parts"))}
    attributes = {
        path: [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if aligned and name not in odd
        for path in leaves(signature[name], (i,))
    }
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    if constants.get("PDL"):
        check_dependent_launch(binary.asm["ptx"])
    return binary


def resources(binary: Any, folder: Path) -> dict[str, int]:
    """Registers, stack, local and shared memory of a compiled kernel, as cuobjdump sees them."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(binary.asm["cubin"])
    usage = listing("cuobjdump", "--dump-resource-usage", cubin)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    waiting = stack_accesses_in_loops(cubin) if found["STACK"] else 0
    return found | {"SHARED": binary.metadata.shared, "STACK IN LOOPS": waiting}


def check_resources(binary: Any, arch: int, folder: Path, name: str) -> dict[str, int]:
    """Prints and returns what a kernel takes: it fits the device, and spills nothing that a loop would wait for.

    Addresses for after a sum may lie on the stack meanwhile: stored and loaded once a tile.
    """
    used = resources(binary, folder)
    print(f"sm_{arch} {name}: {used}")
    assert used["STACK"] <= MOST_STACK and used["LOCAL"] == 0 and used["STACK IN LOOPS"] == 0, (
        f"{name} spills"
    )
    assert used["SHARED"] <= 1024 * SHARED_MEMORY[arch]
    return used
