"""`triton` and its language where they are installed; elsewhere stand-ins that complain on first use.

A CPU needs no Triton. Kernel files import these names from here, so that they load, references included, on
machines without it.

INTERPRETED: whether `triton.jit` made functions for Triton's interpreter; a constant that kernels may read.
"""

from typing import Any

try:
    import triton
    import triton.language as tl

    @triton.jit
    def _empty_kernel() -> None:
        pass

    INTERPRETED = tl.constexpr(not isinstance(_empty_kernel, triton.JITFunction))
except ImportError:

    class _Absent:
        """Takes the place of a module and of the kernels that it decorates."""

        def __getattr__(self, name: str) -> Any:
            return _Absent()

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return _Absent()

        def __getitem__(self, grid: Any) -> Any:
            raise RuntimeError("CUDA tensors need Triton, which is not installed: pip install triton")

    triton = tl = INTERPRETED = _Absent()

__all__ = ["INTERPRETED", "tl", "triton"]
