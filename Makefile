# Everything a developer types. `make` alone lists it.
# Needs Python 3.11 or newer, a network for the first set-up, and nothing else: all tools live in .venv.

MAKEFLAGS += --no-print-directory
BIN := .venv/bin
# Programs are started through the venv's Python where they can be: a script's first line breaks in a path with spaces.
PY := $(BIN)/python
PYTHON ?=
BENCH ?=
BENCH_TREES ?=
BENCH_AUDIT ?=
ACCURACY ?=
PRIVACY_TABLE ?=
TESTS ?= tests
# Processes that test: four, since most tests wait for others; none of its own (0) where there is a single core.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((cores > 1 ? 4 : 0)))
PYTEST ?=
TOUR ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo tour-governance test test-long check format lint types imports contracts contracts-fresh fix bench accuracy privacy-table clean

help: ## this list
	@echo "Cohortium. Set up and run with two commands: make demo, make test."
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-18s%s\n", $$1, $$2 }'
	@echo
	@echo '  PYTHON=python3.12 chooses the Python of the set-up; TESTS=tests/unit PYTEST="-k spool" WORKERS=1 what is tested, in how many processes;'
	@echo '  BENCH="--sites 4 --params 1e6 --rounds 5 --json FILE" what is measured;'
	@echo '  BENCH_TREES="--trees 100 --leaves 15 --json FILE" ACCURACY="--seeds 5 --data DIR" the same for trees.'

setup: ## .venv with everything in it; quick when nothing changed
	@PYTHON="$(PYTHON)" bash deploy/setup.sh

demo: setup ## a federation of four hospitals on real data, start to finish
	@$(PY) -m cohortium_cli demo

tour-governance: setup ## people agree, train, leave and decide; all of it is proven offline
	@$(PY) -m cohortium_sim.tour $(TOUR)

# In the order of their names, so that what runs longest, integration, does not come last and alone.
test: setup ## the suite; what needs a server finds or starts one, or says why it is skipped
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --timeout 300 -m "not long" $(TESTS) $(PYTEST)

test-long: setup ## the tests that take minutes: attacks, accuracy over many seeds; and every example of the properties
	@COHORTIUM_TEST_EXAMPLES=all $(PY) -m pytest -m "long or hypothesis" --timeout 3600 $(TESTS) $(PYTEST)

check: setup ## what every change must pass: format, lint, types, import rules, contracts fresh
	@$(MAKE) format lint types imports contracts-fresh

format:
	@$(PY) -m ruff format --check --quiet services shared tests deploy || { echo 'Not formatted: run `make fix`.'; exit 1; }
	@echo "format     ok"

lint:
	@$(PY) -m ruff check --quiet services shared tests deploy
	@echo "lint       ok"

types:
	@$(PY) -m mypy --no-error-summary services shared deploy/connector/cohortium_hospital
	@echo "types      ok"

imports:
	@found=$$(PYTHONWARNINGS=ignore $(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()' 2>&1) \
		|| { echo "$$found"; exit 1; }
	@echo "imports    ok"

contracts-fresh:
	@$(PY) -m cohortium_cli.contracts_command --check
	@echo "contracts  ok"

contracts: setup ## write contracts/ from the code; the difference is the review
	@$(PY) -m cohortium_cli.contracts_command

fix: setup ## format, and repair what ruff can repair
	@$(PY) -m ruff check --fix --quiet services shared tests deploy || true
	@$(PY) -m ruff format services shared tests deploy

bench: setup ## seconds per round, bytes and memory, LightGBM's steps; see BENCH below
	@$(PY) -m cohortium_sim.bench $(BENCH)
	@$(PY) -m cohortium_sim.bench_trees $(BENCH_TREES)
	@$(PY) -m cohortium_sim.bench_audit $(BENCH_AUDIT)

accuracy: setup ## what federated trees are worth beside pooled, bagged and local ones, on real data
	@$(PY) -m cohortium_sim.trees_table $(ACCURACY)

privacy-table: setup ## the AUC that is left at each ε with local, distributed and central noise, on real data
	@$(PY) -m cohortium_sim.privacy_table $(PRIVACY_TABLE)

clean: ## remove .venv, caches and results
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build cohortium-demo cohortium-tour
	@find services shared tests -name __pycache__ -type d -prune -exec rm -rf {} +
