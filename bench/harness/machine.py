"""What the figures were measured on."""

import platform
import re
import subprocess
from pathlib import Path

import torch

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
DEFAULT_CACHE_BYTES = 32 << 20


def machine() -> dict[str, object]:
    """Processor, threads, GPU and versions, as the JSON line gives them."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "cache_bytes": cache_bytes(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def cache_bytes(device: str = "cpu") -> int:
    """Size of the largest cache: of the CPU, 32 MiB where the system does not tell, or a GPU's L2."""
    if device != "cpu":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_parse_size(path.read_text()) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(match[1]) * _UNITS.get(match[2], 1) if match else 0


def commit() -> str:
    """The checkout's commit, with a + if files differ from it; "unknown" for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def clean_commit() -> str | None:
    """The checkout's commit; None if files differ from it or it is unknown, so that it does not say what was run."""
    found = commit()
    return None if found == "unknown" or found.endswith("+") else found
