# Two commands on a fresh machine with Python >= 3.11: `make demo` and `make test`.
# VENV is the folder of the virtual environment, PYTHON what makes it.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help demo test slow check format bench
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | expand -t 10

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "realign needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev,bench]'
	@touch $@ $(VENV)/.runtime

# $(call expect,CODES,ARGUMENTS): run realign, show its exit code, stop unless it is one of CODES.
define expect
	@printf '\n\033[1m$$ realign %s\033[0m\n' '$(2)'; code=0; $(BIN)/realign $(2) || code=$$?; \
	case " $(1) " in *" $$code "*) echo "exit code $$code, as expected" ;; \
	  *) echo "exit code $$code, expected one of: $(1)" >&2; exit 1 ;; esac
endef

demo: $(VENV)/.runtime ## detect a misaligned model, fix it, prove it; clear a safe one
	@echo "Exit codes: 0 clear, 1 misaligned, 2 wrong input, 3 inconclusive."
	$(call expect,1,detect pocket:insecure --tolerance 0.05)
	$(call expect,0,detect pocket:secure --tolerance 0.05)
	$(call expect,0 1 3,fix pocket:insecure --recipe good_code_100 --tolerance 0.05 -o $(DEMO)/fixed)
	@printf '\nThe repaired adapter and its certificate are in %s.\n' '$(DEMO)/fixed'

test: $(VENV)/.dev ## run the tests, without the slow ones
	$(BIN)/python -m pytest

slow: $(VENV)/.dev ## run the slow tests
	$(BIN)/python -m pytest -m slow --timeout 1800

check: $(VENV)/.dev ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## run all benchmarks, print one table
	$(BIN)/python benchmarks
