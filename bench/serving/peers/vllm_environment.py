"""The environment variables that vLLM runs under on a CPU."""

import ctypes.util
import os
from pathlib import Path

import torch

from .interpreters import named_python

VARIABLE = "ZWEAVE_VLLM_PYTHON"


def vllm_python() -> Path:
    """The interpreter that ZWEAVE_VLLM_PYTHON names; ZweaveError with the command that makes one, if it names none."""
    return named_python(VARIABLE, "vLLM", "vllm_environment.sh")


def vllm_environment(python: Path, threads: int | None = None, cache_gb: int = 1) -> dict[str, str]:
    """For a vLLM process of this interpreter: as fast as it gets on few cores, and without the network.

    Its own binding of threads leaves one core of two idle. tcmalloc and Intel's OpenMP are preloaded, as its manual
    says, where they are installed.
    """
    libraries = [
        _find_library("tcmalloc_minimal"),
        *(python.parent.parent / "lib").glob("libiomp5.so"),
    ]
    return dict(os.environ) | {
        "LD_PRELOAD": ":".join(str(library) for library in libraries if library),
        "OMP_NUM_THREADS": str(threads or torch.get_num_threads()),
        "KMP_BLOCKTIME": "5",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gb),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }


def _find_library(name: str) -> str | None:
    return ctypes.util.find_library(name)
