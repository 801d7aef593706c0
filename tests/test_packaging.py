"""The built wheel: what it holds, that it works by itself, and that its types are right."""

import importlib.util
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["bench", "kernels", "runtime"])
def test_no_generic_name_is_importable(name: str) -> None:
    spec = importlib.util.find_spec(name)
    found = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or [])]
    assert not any(Path(path).is_relative_to(ROOT) for path in found if path)


def test_the_checkouts_folder_is_the_same_module_under_a_wrong_name() -> None:
    """transformers imports `kernels` if it finds one, and must not fail at the root of a checkout."""
    check = "import kernels, zweave.kernels; assert kernels.linear is zweave.kernels.linear"
    run(sys.executable, "-c", check, cwd=ROOT)


def test_setup_is_short() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) < 90


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a user would, from a copy, so that nothing of this checkout's build is reused.

    Only the compiler's optimisation is left out, which takes most of the time and decides nothing here.
    """
    directory = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            target = directory / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    setup = directory / "source" / "setup.py"
    assert '"-O3"' in setup.read_text()
    setup.write_text(setup.read_text().replace('"-O3"', '"-O0"'))
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        directory,
        directory / "source",
    )
    return next(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are lent by this one."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A .pth adds the folder but does not run the .pth files in it, so our editable install stays out.
    (Path(packages) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel)
    return python


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"zweave"}
    assert "zweave/py.typed" in names
    assert "zweave/cli/main.py" in names
    assert "zweave/server/playground/index.html" in names
    assert "zweave/bench/kernels/linear.py" in names
    assert any(name.startswith("zweave/kernels/_C.") and name.endswith(".so") for name in names)
    experts = {
        f"zweave/experts/data/{path.name}" for path in (ROOT / "runtime/experts/data").glob("*.safetensors")
    }
    assert experts and experts <= set(names)


@pytest.mark.slow
def test_wheel_works_away_from_the_checkout(clean_python: Path, tmp_path: Path) -> None:
    check = (
        "import importlib.util, zweave, zweave.kernels, torch\n"
        f"assert not zweave.__file__.startswith({str(ROOT)!r}), zweave.__file__\n"
        "assert importlib.util.find_spec('runtime') is None\n"
        "x = torch.randn(3, 8)\n"
        "y = zweave.kernels.linear(x, torch.eye(8))\n"
        "torch.testing.assert_close(y, x)\n"
    )
    run(clean_python, "-c", check, cwd=tmp_path)
    run(clean_python.with_name("zweave"), "--help", cwd=tmp_path)
    run(clean_python.with_name("zweave"), "bench", "mix", "--experts", 2, "--mixtures", 1, "--components", 1000,
        "--rounds", 1, cwd=tmp_path)  # fmt: skip


@pytest.mark.slow
def test_wheel_is_typed(clean_python: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--python-executable", clean_python,
        "-p", "zweave", cwd=tmp_path)  # fmt: skip


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout
