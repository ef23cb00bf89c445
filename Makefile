# One word each: setup, demo, test, check, bench. Every target does its own set-up.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check bench bench-audit bench-mpi bench-consent

setup: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml tools/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) bash tools/setup.sh
	@touch $(STAMP)

demo: setup
	@$(BIN)/hie demo $(if $(ONCE),--once,)

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo > .lint-imports.log 2>&1 || { cat .lint-imports.log; exit 1; }; rm -f .lint-imports.log

test: setup check
	@bash tools/system_packages.sh
	@cd tests/journeys/node && npm ci --silent --no-audit --no-fund
	@$(BIN)/pytest -n 2 --dist loadfile

bench: setup
	@for script in bench/bench_*.py; do $(BIN)/python $$script; done

bench-audit: setup
	@$(BIN)/python bench/bench_audit.py
	@$(BIN)/python bench/bench_review.py

bench-consent: setup
	@$(BIN)/python bench/bench_consent.py

bench-mpi: setup
	@$(BIN)/python bench/bench_mpi.py
	@$(BIN)/python bench/bench_online.py
	@$(BIN)/python -m fixtures.judge_model --train
