#!/bin/sh
# Makes a virtual environment with llama.cpp for this machine's CPU: bench/serving/peers/llama_environment.sh DIR
# Compiles its library and none of its programs, which takes ten minutes of one core and wants a C++ compiler;
# CMAKE_BUILD_PARALLEL_LEVEL bounds the jobs. Where quantised weights end by SIGILL, as AMX's tiles did on a virtual machine, leave AMX out:
#   no="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"; CFLAGS=$no CXXFLAGS=$no bench/serving/peers/llama_environment.sh DIR
set -eu
directory=${1:?"usage: $0 DIR"}
version=0.3.36
"${PYTHON:-python3}" -m venv "$directory"
library="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF"
CMAKE_ARGS="-DGGML_NATIVE=ON $library ${CMAKE_ARGS:-}" "$directory/bin/pip" install "llama-cpp-python==$version"
echo "export ZWEAVE_LLAMA_PYTHON=$directory/bin/python"
