#!/bin/sh
# Makes a virtual environment with llama.cpp for this machine's CPU: bench/serving/peers/llama_environment.sh DIR
# Compiles it, which takes ten minutes and more on two cores and wants a C++ compiler; CMAKE_BUILD_PARALLEL_LEVEL bounds the
# jobs. Where quantised weights end by SIGILL, as AMX's tiles did on a virtual machine, leave AMX out:
#   no="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"; CFLAGS=$no CXXFLAGS=$no bench/serving/peers/llama_environment.sh DIR
set -eu
directory=${1:?"usage: $0 DIR"}
version=0.3.36
"${PYTHON:-python3}" -m venv "$directory"
CMAKE_ARGS="-DGGML_NATIVE=ON ${CMAKE_ARGS:-}" "$directory/bin/pip" install "llama-cpp-python==$version"
echo "export ZWEAVE_LLAMA_PYTHON=$directory/bin/python"
