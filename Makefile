# `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.
#
#   PYTHON=python3.12     the interpreter of the environment (default: the first of Python 3.11 or newer)
#   TORCH_INDEX=...       a package index to take the CPU build of torch from (default: what pip is configured for)
#   JOBS=4                parallel test processes, one thread each

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= $(firstword $(foreach p,python3 python python3.14 python3.13 python3.12 python3.11,\
    $(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
TORCH_INDEX ?=
JOBS ?= 2

ENV := .venv
BIN := $(ENV)/bin
# -qq: only errors are printed. The constraints hold in every install, so that none replaces the CPU build of torch.
PIP := $(BIN)/python -m pip install -qq --constraint .ci/constraints.txt
# One thread for each process: parallel tests that each start a thread per core slow one another down.
# The examples have latency budgets, which are measured beside other processes only in groups: --dist loadgroup.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --timeout 300

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- environment: stamp files make a second run quick ---

$(ENV)/.torch: .ci/constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or say PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "creating $(ENV) with $$($(PYTHON) --version) and the CPU build of torch"
	@$(PYTHON) -m venv --clear $(ENV)
	@$(BIN)/python -m pip install -qq --upgrade 'pip>=25.1'
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch numpy
	@$(BIN)/python -c 'import torch; torch.version.cuda and print("note: pip chose a CUDA build of torch; see CONTRIBUTING.md for TORCH_INDEX")'
	@touch $@

$(ENV)/.demo: $(ENV)/.torch pyproject.toml
	@echo "installing pytest-torchexport[onnx,hypothesis,html] and what the tests need"
	@$(PIP) --editable '.[onnx,hypothesis,html]' --group test
	@touch $@

$(ENV)/.dev: $(ENV)/.demo
	@echo "installing linters and documentation tools"
	@$(PIP) --group lint --group docs
	@touch $@

# --- what there is to run ---

.PHONY: demo
demo: $(ENV)/.demo ## run the examples on every backend and print the result table
	@$(PYTEST) --dist loadgroup examples

.PHONY: test
test: lint docs $(ENV)/.dev ## everything that CI runs: lint, types, documentation, tests, the examples
	@$(PYTEST) tests -m 'not benchmark and not thorough'
	@$(PYTEST) --dist loadgroup examples

.PHONY: test-thorough
test-thorough: $(ENV)/.demo ## the variants that `make test` leaves out, since they take minutes
	@$(PYTEST) tests -m thorough

.PHONY: test-quick
test-quick: $(ENV)/.demo ## the tests that take seconds
	@$(PYTEST) tests -m 'not slow and not benchmark and not thorough'

.PHONY: benchmark
benchmark: $(ENV)/.demo ## measure what the plugin costs
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks -m benchmark -s

.PHONY: lint
lint: $(ENV)/.dev ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: format
format: $(ENV)/.dev ## let ruff correct what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: docs
docs: $(ENV)/.dev ## build the documentation, warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: wheel
wheel: $(ENV)/.demo ## build the wheel and the source archive into dist/
	@$(PIP) build
	@$(BIN)/python -m build --outdir dist .

.PHONY: clean
clean: ## remove the environment and everything built
	@rm -rf $(ENV) build dist site export-output .pytest_cache .mypy_cache .ruff_cache
