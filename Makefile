# Every target does its own set-up; on a fresh clone `make demo` or `make test` is all to type.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

HAS_GPU = nvidia-smi -L 2>/dev/null | grep -q '^GPU '
DEMO_WORKERS ?= $(shell $(HAS_GPU) && echo auto || echo 2)
TEST_JOBS ?= 2
# Tests run side by side, so each process keeps to one core.
TEST_ENV := OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
PYTEST = $(TEST_ENV) $(BIN)/python -m pytest -n $(TEST_JOBS)
QUIET = $$([ -t 1 ] || echo --quiet)

.PHONY: help setup demo test test-slow test-all proof check bench bench-endpoint clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv and install everything into it
	@echo "Ready: $(BIN)/aalnet --help"

demo: $(STAMP) ## train on the embedded drawings, evaluate, show the picture (DEMO_WORKERS=2)
	$(BIN)/aalnet train configs/demo.yaml --run demo --workers $(DEMO_WORKERS)
	$(BIN)/aalnet evaluate demo
	$(BIN)/aalnet runs show demo

test: $(STAMP) ## the quick tests
	$(PYTEST) -m "not slow"

test-slow: $(STAMP) ## the tests that start Ray or train for real
	$(PYTEST) -m slow

test-all: $(STAMP) ## both, those that start Ray beside the others, as in CI
	$(PYTEST)

proof: $(STAMP) ## the long proofs, before a release: kills, chaos, alerts, repeats (hours)
	$(TEST_ENV) $(BIN)/python -m tests.proof

check: $(STAMP) ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## the benchmarks
	$(BIN)/python -m benchmarks

bench-endpoint: $(STAMP) ## the endpoint beside the bare model, LitServe and a plain handler
	$(BIN)/python -m pip install $(QUIET) -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.endpoint

clean: ## remove caches and builds; .venv and aalnet-runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The stamp bears the time the install began and appears only when it has succeeded.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -c 'import pip, sys; assert sys.version_info >= (3, 11)' 2>/dev/null || { \
	  $(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) -V 2>&1 | tail -n 1)." >&2; \
	    echo "Name another: make setup PYTHON=python3.12" >&2; exit 2; }; \
	  echo "Making $(VENV) with $$($(PYTHON) -V)"; \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "On Debian and Ubuntu: apt-get install python3-venv, then the same again." >&2; exit 1; }; }
	@touch $@.begun
	@echo "Installing into $(VENV) (the first time takes some minutes)"
	@$(BIN)/python -m pip install $(QUIET) -c constraints.txt -e '.[dev]'
	@mv $@.begun $@
