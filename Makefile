# make bench   set up, run the quick suite on the device that is found, draw the map
# make test    set up, run the whole test suite
# make help    the rest

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH   = torch==2.13.0
TRITON  = triton==3.7.1; sys_platform == 'linux'
SUITE  ?= quick
DEVICE ?= auto

.PHONY: bench test lint lock cuda figures clean help
.DEFAULT_GOAL := help

help: ## this text
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "flurka-bench needs Python 3.11 or newer, got %s: make PYTHON=python3.11 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# torch first: whatever depends on it must find the pinned version already there. On Linux the GPU extra brings Triton.
$(VENV)/.bench: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) '$(TORCH)'
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.bench
	$(PIP) -e '.[dev,gpu,parquet,quality]'
	@touch $@

bench: $(VENV)/.bench ## set up, run the quick suite (SUITE=..., DEVICE=...), draw the map
	$(BIN)/flurka-bench run $(SUITE) --device $(DEVICE) --plot

# One thread for each of the two workers: with more threads than cores they wait for each other, and the tests that time things see it.
test: $(VENV)/.test ## set up, run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: $(VENV)/.test ## format, lint, types, unused code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/vulture

lock: $(VENV)/.test ## compile constraints.txt anew
	$(PIP) uv
	printf '%s\n' "$(TORCH)" "$(TRITON)" > $(VENV)/pins.txt
	{ sed -n '/^#/p' constraints.txt; $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
	  --extra gpu --extra parquet --extra quality --extra dev -c $(VENV)/pins.txt pyproject.toml; } > $(VENV)/constraints.new
	mv $(VENV)/constraints.new constraints.txt

cuda: $(VENV)/.test ## on a machine with a GPU: everything that can only be proven there
	$(BIN)/python scripts/on_cuda.py

figures: $(VENV)/.test ## from results/reference: every picture, page and table of README and docs
	$(BIN)/python scripts/figures.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache .mypy_cache build *.egg-info
