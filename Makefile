# Every target sets up what it needs: Python 3.11+ and make are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench torture fuzz clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## Synthetic chest X-rays and gaze -> import -> MT-UNet -> report, in a few minutes
	$(BIN)/radgaze demo --out demo $(DEMO)

# One thread each: processes that share cores and have several threads wait for each other.
test: $(STAMP)  ## Run the tests, on up to four cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(TEST)

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## Time the hot paths against the papers' way of doing the same work
	$(BIN)/python benchmarks/suite.py $(BENCH)

torture: $(STAMP)  ## Kill every command at random moments, fill its disk, and compare with an undisturbed run
	$(BIN)/python torture/suite.py $(TORTURE)

fuzz: $(STAMP)  ## Coverage-guided fuzzing of every reader (FUZZ="dicom --runs 1000000" for one, or longer)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[dev,fuzz]'
	$(BIN)/python -m fuzz $(FUZZ)

setup: $(STAMP)  ## Create the environment alone

# Made anew whenever pyproject.toml is newer; otherwise nothing happens.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "radgaze needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

clean:  ## Remove the environment and everything derived
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
