# Every target makes the environment first where it is missing; PYTHON and KEEPAUG_WHEELS can be overridden.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KEEPAUG_WHEELS ?= $(HOME)/.cache/keepaug/wheels
QUICKSTART_OUT ?= quickstart
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: quickstart test trust lint types docs env clean

quickstart: $(VENV)/.ready  ## the whole job on a dataset drawn by the program
	$(BIN)/python tools/quickstart.py --output $(QUICKSTART_OUT)

test: $(VENV)/.ready  ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

trust: $(VENV)/.ready  ## kills, full disks and damaged files, counted: docs/trust.md
	$(BIN)/python tools/trust.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

docs: $(VENV)/.ready  ## the API reference, from the docstrings
	$(BIN)/python tools/reference.py --output build/docs

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml Makefile
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=69"
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet -e ".[all,test,dev]"
	@KEEPAUG_WHEELS="$(KEEPAUG_WHEELS)" $(BIN)/python tools/install_detectron2_wheel.py
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
