# Darkroom, from a fresh clone. Every target installs what it needs into .venv, once. pip's own variables are honored.
PYTHON ?= python3
PROMPT ?= a red house by the sea at sunset
OUTPUT ?= demo.png
PORT ?= 8000
TESTS ?= tests
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

# Words from the command line reach the shell through the environment: no prompt can end its own quotes.
export PROMPT OUTPUT PORT

.DEFAULT_GOAL := help
.PHONY: help demo up test lint bench bench-gpu clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/run.stamp ## Develop one picture, the whole way: make demo PROMPT="a red house" [OUTPUT=demo.png]
	@$(BIN)/darkroom demo --prompt "$$PROMPT" --output "$$OUTPUT"

up: .venv/run.stamp ## Start everything on this machine until Ctrl-C: make up [PORT=8000]
	@exec $(BIN)/darkroom up --port "$$PORT"

test: lint ## Check and test everything: make test [TESTS=tests/jobs]
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not bench" $(TESTS)

lint: .venv/test.stamp ## Check format, style, types and the arrows between modules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: .venv/test.stamp ## Run the benchmarks and print their tables
	$(BIN)/python -m pytest -m bench -s tests

bench-gpu: .venv/test.stamp ## Measure the engine on one CUDA GPU and print the tables, in under eight minutes
	$(BIN)/python tests/bench/gpu.py

clean: ## Remove everything that make has made
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis demo.png tests/browser/screenshots
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Darkroom needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/run.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[worker,local]'
	@touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[worker,local,postgres,test]'
	@touch $@ .venv/run.stamp
