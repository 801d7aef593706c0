"""Where the kernels that are compiled ahead of time are kept."""

import pytest


@pytest.fixture(autouse=True)
def kept_kernels(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton keeps what it compiles by content, beside pytest's own cache: a second run compiles nothing."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(pytestconfig.cache.mkdir("triton")))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
