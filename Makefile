# demo, test, lint and bench each set themselves up first: Python 3.11 to 3.13 with venv is all they need.

PYTHON ?= python3
VENV ?= .venv
# Extras to install with the package, e.g. `make setup EXTRAS=dev,cuda`.
EXTRAS ?= dev
WORKERS ?= 2
PYTEST_ARGS ?=
# Files in the order of tests/conftest.py, which has the longest first; else those with the most tests are.
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Learning rates are higher than the paper's, which works on a pendulum.
DEMO ?= pderl --env gymnax/Pendulum-v1 --env-steps 124000 --eval-every 6200 --eval-episodes 10 \
  --config.trials 3 --config.sync_period 2 --hyper.updates_per_step 0.35 \
  --hyper.agent.actor_lr 5e-4 --hyper.agent.critic_lr 1e-3 --hyper.agent.polyak 0.01
# Every demo gets a directory of its own: a run never overwrites another.
DEMO_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
BENCH ?=

BIN = $(VENV)/bin
STAMP = $(VENV)/.installed-$(EXTRAS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format bench docs clean

help:
	@echo "make setup     create $(VENV) and install popjax into it"
	@echo "make demo      train a population on Pendulum and draw its learning curve (a few minutes)"
	@echo "make test      run the tests (minutes, no accelerator needed)"
	@echo "make test-all  run the slow tests too"
	@echo "make lint      check style and types"
	@echo "make format    rewrite the code in the common style"
	@echo "make bench     measure throughput"
	@echo "make docs      build the documentation into docs/_build/html, warnings as errors"
	@echo "make clean     remove $(VENV) and the caches of the tools; runs/ stays"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "popjax needs Python 3.11 to 3.13, $(PYTHON) is `$(PYTHON) --version 2>&1`;" \
	    "name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python scripts/run.py $(DEMO) --run-dir $(DEMO_DIR)

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m 'not gpu' $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),peers]'
	$(BIN)/python benchmarks/throughput.py $(BENCH)

# EXECUTE=force runs the notebooks again; by default they are shown as they ran.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees -b html docs docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees -b doctest docs docs/_build/doctest

clean:
	rm -rf $(VENV) docs/_build docs/generated .pytest_cache .mypy_cache .ruff_cache build dist
