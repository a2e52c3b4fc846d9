# What a newcomer types: `make demo`, `make test`. Both set up everything they need, once.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-wheel lint format faults bench clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# Installed again only when pyproject.toml changes. The stamp is written last, so a broken install is tried again.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "sance_audio needs Python >= 3.10; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(READY)  ## install into .venv

demo: $(READY)   ## train on synthesised drums, generate, score, write a page
	$(BIN)/python recipes/drums/train.py --run runs/drums --preset cpu

test: $(READY)   ## the whole test suite but for what is marked slow
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: $(READY)  ## what takes minutes
	$(BIN)/python -m pytest -q -m slow

test-wheel: $(READY)  ## build a wheel, install it in a fresh environment, train there
	rm -rf build/wheel && $(BIN)/python -m build --wheel --outdir build/wheel
	$(PYTHON) -m venv --clear build/fresh
	build/fresh/bin/python -m pip install --quiet build/wheel/*.whl
	cd build && fresh/bin/sance-audio train drums --preset smoke --run fresh/run

lint: $(READY)   ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## rewrite in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

faults: $(READY) ## plant faults into the samplers; every one must be caught
	$(BIN)/python tests/planted_faults.py

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

bench: $(VENV)/.bench  ## speed, side by side with the peers; some minutes
	$(BIN)/python -m benchmarks

clean:           ## remove caches and builds; runs stay
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache
