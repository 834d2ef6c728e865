PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test lint mutants install

demo: install  ## Press LeNet-5 on embedded data, about two minutes.
	$(BIN)/tensorpress demo --out demo

test: install  ## Run the whole suite; tests on real data need TENSORPRESS_DATA.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: install  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutants: install  ## Small faults put into the code, and how many of them its tests see: 15 minutes.
	$(BIN)/python -m benchmarks.mutation

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)
