# Two commands: `make serve` and `make test`. Everything else is a part of them.
PYTHON ?= python3
VENV ?= .venv
# Clients of other people that can't live beside the newest OpenAI SDK; only tests/clients needs them.
CLIENTS_VENV ?= .venv-clients
MODEL ?= models/orcinus-tiny
HOST ?= 127.0.0.1
PORT ?= 8000
# Where pip finds the CPU build of torch 2.13.0, if its usual index holds the CUDA build: PyTorch's own CPU wheel index.
TORCH_INDEX ?=
ARGS ?=
COMPUTING := $(addprefix tests/,core kernels layers models simulate simulation text worker)

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: serve test test-fast check format setup setup-dev setup-clients clean

serve: setup
	@$(BIN)/orcinus serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

# First what only computes, two at a time; then what starts servers and workers, which want both cores.
test: check setup-clients
	@$(BIN)/pytest --numprocesses 2 --dist worksteal $(COMPUTING)
	@ORCINUS_CLIENTS_VENV=$(CLIENTS_VENV) $(BIN)/pytest $(addprefix --ignore=,$(COMPUTING))

test-fast: setup-dev
	@$(BIN)/pytest -m "not slow and not gpu"

check: setup-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Orcinus needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing Orcinus into $(VENV) (a few minutes the first time, then never again) ..."
	$(PIP_INSTALL) --progress-bar on --editable .
	@echo "Building the native kernels ..."
	$(BIN)/python -m orcinus.kernels.cpu.build
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need ..."
	$(PIP_INSTALL) --progress-bar on --editable '.[dev]'
	@touch $@

setup-clients: $(CLIENTS_VENV)/.installed

# The environment hides itself from git and from the linters.
$(CLIENTS_VENV)/.installed: tests/clients/requirements.txt | $(BIN)/pip
	@echo "Installing other people's clients into $(CLIENTS_VENV) (a minute, 400 MB) ..."
	$(BIN)/python -m venv $(CLIENTS_VENV)
	@echo '*' > $(CLIENTS_VENV)/.gitignore
	$(CLIENTS_VENV)/bin/pip install --progress-bar on --requirement tests/clients/requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) $(CLIENTS_VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache
