# `make demo` and `make test` put everything they need into .venv; constraints.txt holds the tested versions.
PYTHON ?= python3
BIN := .venv/bin
# Test files at once, each in a process of some GB.
WORKERS ?= 2
PIP := $(BIN)/pip install --constraint constraints.txt
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.PHONY: demo test lint clean

demo: .venv/.installed
	$(BIN)/zweave demo

test: .venv/.tested
	$(BIN)/zweave pull smollm2
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -q tests/test_architecture.py
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

# torch comes first and the build is not isolated: the extension is compiled against the torch it runs with.
.venv/.ready: constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) torch setuptools wheel ninja pybind11 numpy
	touch $@

.venv/.installed: .venv/.ready $(SOURCES)
	$(PIP) --no-build-isolation --editable .
	touch $@

.venv/.tested: .venv/.ready $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[test]'
	touch .venv/.installed $@

clean:
	rm -rf .venv build dist *.egg-info kernels/*.so
