PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
CORE := .venv-core
OLDEST := .venv-oldest
OLDEST_PYTHON ?= python3.10
OLDEST_TORCH ?= $(shell sed -n 's/^ *"torch>=\(.*\)",/\1/p' pyproject.toml)

.PHONY: demo test test-core test-oldest lint docs mutants fuzz install

demo: install  ## Press LeNet-5 on embedded data, about two minutes.
	$(BIN)/tensorpress demo --out demo

test: install  ## Run the whole suite; tests on real data need TENSORPRESS_DATA.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-core: $(CORE)/ready  ## Tests of what can do with more packages, without them.
	OMP_NUM_THREADS=1 $(CORE)/bin/pytest -n 2 --dist worksteal -rs tests/checkpoints tests/cli tests/data tests/export tests/models tests/utils

test-oldest: $(OLDEST)/ready  ## Tests with the least versions of pyproject.toml; PyTorch for CUDA is 5 GB.
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -n 2 tests/planning tests/schemes tests/codec tests/utils tests/compress

lint: install  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## Build the site into build/site, without network; a broken link is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

mutants: install  ## Small faults put into the code, and how many of them its tests see: 15 minutes.
	$(BIN)/python -m benchmarks.mutation

fuzz: install  ## A million hostile files, 100,000 random layers, 200 kills: what is read, pressed or left wrongly.
	$(BIN)/python -m benchmarks.fuzz --out fuzz.json --harmful fuzz
	$(BIN)/python -m benchmarks.fuzz_layers --out fuzz_layers.json
	$(BIN)/python -m benchmarks.fuzz_kills --out fuzz_kills.json

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

$(CORE)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CORE)
	$(CORE)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e . hypothesis pytest-xdist
	touch $@

$(OLDEST)/ready: pyproject.toml
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	sed -n 's/^ *"\([a-zA-Z0-9_-]*\)>=\([0-9.]*\)",$$/\1==\2/p' pyproject.toml \
		| sed 's/^torch==.*/torch==$(OLDEST_TORCH)/' > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt -e . hypothesis pytest pytest-xdist
	touch $@
