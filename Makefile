# `make` alone explains itself. Everything runs in .venv, which scripts/venv.sh fills from a hashed lock.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
ROOMS ?= unit property model integration crash docs architecture
WORKERS ?= 2
JUDGE_ROOMS ?= integration
# What chooses its road by itself, or is about starting servers, says nothing new on another PostgreSQL and another road.
JUDGE_IGNORED := kv_* embedded* cli_servers* demo* dashboard* top*
JUDGE_POSTGRES_BIN ?= /usr/lib/postgresql/15/bin
ROUNDS ?= 20
SEED ?=
ARGS ?=

USUAL := not judge and not campaign
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
SHARED := $(PYTEST) $(if $(filter-out 1,$(WORKERS)),-n $(WORKERS) --dist worksteal)

.PHONY: help demo test judge check format bench faults lock clean venv venv-run

help: ## show this list
	@printf 'usage: make TARGET [NAME=value ...]\n\n'
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | while IFS=$$'\t' read -r name text; do \
	  printf '  %-8s %s\n' "$$name" "$$text"; done
	@printf '\n  PYTHON=python3.12     the interpreter a new .venv is made with (default: the first >= 3.11 found)\n'
	@printf '  ROOMS="unit docs"     the rooms `make test` visits (default: %s)\n' '$(ROOMS)'
	@printf '  WORKERS=1             pytest workers of `make test` and `make judge` (default: %s)\n' '$(WORKERS)'
	@printf '  ARGS="-k lease -x"    further arguments of pytest, of `cenote demo` or of the benchmark\n'

demo: venv-run ## watch a swarm survive kill -9 of its workers and of both servers
	@$(BIN)/cenote demo $(ARGS)

test: check ## every check and every test, on real servers (judge tests apart)
	@$(SHARED) -m '$(USUAL)' $(ARGS) $(addprefix tests/,$(ROOMS))

judge: venv ## the long tests, and the integration rooms again on another PostgreSQL, on the public road
	@echo 'judge: tests marked judge'
	@$(SHARED) -m judge $(ARGS) tests
	@echo 'judge: $(JUDGE_ROOMS) on $(JUDGE_POSTGRES_BIN), without the fast lane'
	@CENOTE_TEST_POSTGRES_BIN=$(JUDGE_POSTGRES_BIN) CENOTE_KV__FAST_LANE=false $(SHARED) -m '$(USUAL)' $(ARGS) \
	  $(patsubst %,--ignore-glob='tests/integration/test_%',$(JUDGE_IGNORED)) $(addprefix tests/,$(JUDGE_ROOMS))

check: venv ## format, lint, types and the direction of imports
	@$(BIN)/ruff format --check --quiet . || { echo 'make format puts this right'; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >.venv/imports.txt || { cat .venv/imports.txt; exit 1; }
	@echo 'check: format, lint, types and imports are in order'

format: venv ## put format and import order right
	@$(BIN)/ruff check --quiet --fix-only . && $(BIN)/ruff format --quiet .

bench: venv ## the speed table: ours against the bare drivers, interleaved in one run
	@$(BIN)/cenote bench $(ARGS)

faults: venv ## random fault campaigns: ROUNDS=20 SEED=… (a failure names the seed that repeats it)
	@FAULT_ROUNDS=$(ROUNDS) FAULT_SEED=$(SEED) $(PYTEST) -s -m campaign --timeout=0 $(ARGS) tests/crash

lock: ## resolve the dependencies of pyproject.toml anew into requirements/*.txt
	@PYTHON='$(PYTHON)' scripts/lock.sh

clean: ## remove .venv and everything that can be made again
	@rm -rf .venv .venv-lock dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@PYTHON='$(PYTHON)' scripts/venv.sh dev

venv-run:
	@PYTHON='$(PYTHON)' scripts/venv.sh run
