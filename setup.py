"""Builds zweave: `runtime/` is the package `zweave`, `kernels/` and `bench/` its sub-packages."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent
CUDA_CODE = (("80", "sm_80"), ("90", "sm_90"), ("90", "compute_90"))


def sub_packages(package: str, folder: str) -> dict[str, str]:
    """Maps a package and all its sub-packages to their folders."""
    found = find_packages(str(ROOT / folder))
    return {package: folder} | {f"{package}.{name}": f"{folder}/{name.replace('.', '/')}" for name in found}


def extension() -> CppExtension:
    """The C++ ops; the CUDA ones too where nvcc and a CUDA build of torch are present."""
    import torch

    def files(*patterns: str) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for p in patterns for path in (ROOT / "csrc").glob(p))

    sources, headers = files("*.cpp", "cpu/**/*.cpp"), files("**/*.h", "**/*.cuh")
    cuda_sources = files("cuda/*.cpp", "cuda/*.cu")
    with_cuda = bool(cuda_sources and CUDA_HOME and shutil.which("nvcc") and torch.version.cuda)
    # No -march: every instruction set has a file of its own and is chosen at run time.
    # Contraction would let the compiler round a sum once in one tile and twice in another.
    cxx = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
    # By its file: a toolchain that has only the archive would link a second C++ runtime beside torch's.
    link = ["-fopenmp", "-l:libstdc++.so.6"]
    # Named here, or torch would add those of the build machine. PTX for what comes after sm_90.
    nvcc = ["-O3", "-std=c++20", *(f"-gencode=arch=compute_{a},code={c}" for a, c in CUDA_CODE)]
    if with_cuda:
        return CUDAExtension(
            "zweave.kernels._C",
            sources + cuda_sources,
            depends=headers,
            include_dirs=[str(ROOT / "csrc")],
            define_macros=[("ZWEAVE_CUDA", None)],
            extra_compile_args={"cxx": cxx, "nvcc": nvcc},
            extra_link_args=link,
        )
    return CppExtension(
        "zweave.kernels._C",
        sources,
        depends=headers,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=cxx,
        extra_link_args=link,
    )


packages = sub_packages("zweave", "runtime")
packages |= sub_packages("zweave.kernels", "kernels") | sub_packages("zweave.bench", "bench")
setup(
    packages=list(packages),
    package_dir=packages,
    package_data={
        "zweave": [
            "py.typed",
            "experts/data/*",
            "describe/data/*",
            "tasks/data/*",
            "quantization/data/*",
            "server/playground/*",
        ],
        "zweave.kernels": ["_C.pyi"],
    },
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
)
