# make demo | test | check | bench | docs      nothing more to learn
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes

.PHONY: help demo test check bench docs lock clean

help:
	@echo "make demo    set up, start a sick service, capture it, show and check the bundle"
	@echo "make test    set up and run all tests"
	@echo "make check   types, style, generated pages"
	@echo "make bench   benchmarks, side by side with their peers (minutes)"
	@echo "make docs    make the generated pages anew"

$(VENV)/.base: requirements/build.txt
	@test -n "$(PYTHON)" || { echo "pmf needs Python 3.11 or later with venv (Debian: apt-get install python3-venv)"; exit 4; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements/build.txt
	@touch $@

$(VENV)/.demo: $(VENV)/.base requirements/demo.txt pyproject.toml
	@$(PIP) --no-build-isolation -r requirements/demo.txt
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q src  # start-up is a promise, and missing bytecode costs it threefold
	@touch $@

$(VENV)/.test: $(VENV)/.demo requirements/test.txt
	@$(PIP) --no-build-isolation -r requirements/test.txt
	@touch $@

demo: $(VENV)/.demo
	@fixtures/zoo/demo

test: $(VENV)/.test
	@requirements/system-packages
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python docs/make.py --check

bench: $(VENV)/.test
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.test
	@$(BIN)/python docs/make.py

lock:
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet uv
	@for group in build run demo test; do requirements/lock $$group $(BIN)/uv; done

clean:
	rm -rf $(VENV) .cache evidence
