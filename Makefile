# Needs Python 3.11 or newer, git and make; everything else is fetched into .venv.
#   make run     set up, then one whole night; again for the next one
#   make test    set up, then lint and run every test
# PYTHON=/path/to/python chooses the interpreter of a new .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# Written last: it exists only if the environment is complete, and is as old as its last change.
STAMP := $(VENV)/setup.stamp
CODE := src tests $(wildcard benchmarks)
# Images of containers often forbid it, and then every process compiles thousands of files of its packages anew.
export PYTHONDONTWRITEBYTECODE :=
# A worker a core, at most four for memory's sake; a file's tests share what they are given and stay together.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	if "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then echo "$$python"; break; fi; done)

# uv reads no settings of pip: an index or certificate that is configured for pip alone is handed over.
define UV
index="$${UV_DEFAULT_INDEX:-$${UV_INDEX_URL:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}}}"; \
if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
if [ -n "$${PIP_CERT:-}" ]; then export SSL_CERT_FILE="$${SSL_CERT_FILE:-$$PIP_CERT}"; fi; \
$(BIN)/uv
endef
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

.PHONY: help setup run test test-fast lint format embedded lock clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

setup: $(STAMP)  ## Make .venv from requirements.lock; does nothing when nothing changed.

run: setup  ## One whole night on the embedded model; the next one when run again.
	$(BIN)/kedro run --pipelines=sleep
	@echo "Report: $$(ls -d data/08_reporting/night_*/report.html | tail -1)"

test: lint  ## Lint, then run all tests.
	$(PYTEST)

test-fast: setup  ## Run the tests that need seconds.
	$(PYTEST) -m "not slow"

lint: setup  ## Check style, formatting and types.
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: setup  ## Format the code and fix what can be fixed.
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

embedded: setup  ## Train the language model that ships, minutes on a GPU, and put it into the package; needs the text that conf/shipped names.
	$(BIN)/kedro run --pipelines=pretrain --env=shipped
	rm -rf src/sleep_pipeline/embedded
	cp -r data/06_models/pretrain/model src/sleep_pipeline/embedded
	cp data/08_reporting/pretrain/README.md src/sleep_pipeline/embedded/README.md

lock: $(BIN)/uv  ## Resolve the dependencies anew; UPGRADE=1 moves to the newest versions.
	@$(UV) $(COMPILE) pyproject.toml --extra dev --output-file requirements.lock
	@$(UV) $(COMPILE) --group bootstrap --output-file requirements-bootstrap.lock

clean:  ## Remove caches and build products; data and .venv stay.
	rm -rf build dist .coverage htmlcov .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv: requirements-bootstrap.lock
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer on the PATH: install one, or name it with make PYTHON=/path/to/python" >&2; exit 1; fi
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "PYTHON=$(PYTHON) is older than 3.11: name a newer one" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV) || { \
		echo "Python's venv does not work: install it (Debian, Ubuntu: python3-venv), and run the same again" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-bootstrap.lock
	@touch $@

$(STAMP): $(BIN)/uv requirements.lock pyproject.toml
	@echo "Installing the packages of requirements.lock into $(VENV)"
	@$(UV) pip sync --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
