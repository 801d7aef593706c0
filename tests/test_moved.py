"""Old paths of modules: they warn and give the modules of today."""

import subprocess
import sys
from importlib import import_module

import pytest

from zweave._moved import MOVED

# What docs and examples imported from there.
NAMES = {
    "zweave.bank": "Bank",
    "zweave.bundled": "bundled_expert",
    "zweave.decompose": "decompose",
    "zweave.early_classifier": "EarlyClassifier",
    "zweave.expert": "Expert",
    "zweave.merger": "Merger",
    "zweave.mixture": "Mixture",
    "zweave.prompts": "chat",
    "zweave.support": "Support",
}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_warns_and_is_the_module_of_today(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    today = import_module(MOVED[old])
    spec = today.__spec__
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {MOVED[old]}$") as warned:
        assert import_module(old) is today
    assert len(warned) == 1
    assert today.__spec__ is spec and today.__name__ == MOVED[old]
    assert hasattr(today, NAMES[old])


def test_the_warning_points_to_the_import() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "always",
            "-c",
            "from zweave.bank import Bank\nimport zweave.mixture as m; m.Mixture",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "<string>:1: DeprecationWarning: zweave.bank is now zweave.experts.bank" in done.stderr
    assert "<string>:2: DeprecationWarning: zweave.mixture is now zweave.experts.mixture" in done.stderr


def test_other_paths_fail_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'zweave\.nothing'"):
        import_module("zweave.nothing")


def test_the_package_loads_without_torch() -> None:
    command = "import sys, zweave; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
