# Two commands for a fresh Debian or Ubuntu machine with Python >= 3.11 and g++:
#   make demo    liquid water in LAMMPS from the model in examples/lammps/water
#   make test    the whole test suite
# Each sets up its own environment in .venv, installs the package there and builds the LAMMPS plugin.
#   make docs    the documentation as a site, in build/site

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find nequip_md training export pair_style cmake -type f -not -path '*/__pycache__/*') pyproject.toml constraints.txt
# the tests run side by side, one on each core and on eight at most; another number: make test PYTEST_ARGS="-n 2"
PYTEST_ARGS ?=

.PHONY: demo test docs format clean
.DELETE_ON_ERROR:

# a safe path: the tests see the installed package, not the source folder of the same name
test: $(VENV)/.installed-test
	$(BIN)/nequip-md-lammps build
	PYTHONSAFEPATH=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

demo: $(VENV)/.installed-demo
	$(BIN)/nequip-md-lammps build
	PATH="$(abspath $(BIN)):$$PATH" sh examples/lammps/water/run.sh

# a broken link, anchor or name of the API ends it; the notice is that of the theme on its successor
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is too old; install Python 3.11 or newer, or name one: make PYTHON=python3.12"; exit 1; }
	@command -v g++ >/dev/null || { echo "error: g++ was not found; install it with: apt install g++"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "error: python's venv module is incomplete; install it with: apt install python3-venv python3-dev"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools wheel

$(VENV)/.installed-%: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt ".[$*]"
	@touch $@

# needs `make test` before
format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	git ls-files | grep -E '\.(cpp|cuh|h)$$' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build dist *.egg-info examples/lammps/*/out
