# ruff: noqa: N999  the name of an extension module

def cpu_isa() -> str:
    """Name of the instruction set that the CPU ops use: "scalar", "avx2" or "avx512"."""
