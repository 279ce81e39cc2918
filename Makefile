# The entry point for people and for .ci/run. `make` alone lists the targets.
# On Windows use the shell that comes with Git; PYTHON picks another interpreter.

PYTHON ?= python3
VENV   := .venv
BIN    := $(if $(filter Windows_NT,$(OS)),$(VENV)/Scripts,$(VENV)/bin)
STAMP  := $(VENV)/.installed

# Tests and checks must not depend on the caller's thread counts, caches or terminal.
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_PROGRESS_BARS := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help install demo check format test coverage clean

help:
	@echo "make demo      build, export and chat with the small reference model"
	@echo "make test      the whole test suite"
	@echo "make check     ruff and mypy"
	@echo "make install   the virtual environment that all of them use"
	@echo "make format    let ruff format the code"
	@echo "make coverage  the test suite with branch coverage"
	@echo "make clean     remove what the targets above made"

install: $(STAMP)

# torch first: its CPU build where the configured index has one. Then a pinned set without
# dependency resolution, because optimum-intel asks for torchvision, which no text model needs
# and which breaks transformers beside a CPU torch.
$(STAMP): pyproject.toml requirements/torch.txt requirements/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements/torch.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@echo ok > $(STAMP)

demo: install
	$(BIN)/python examples/demo.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install
	$(BIN)/python -m pytest

coverage: install
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet || true
	$(BIN)/coverage report

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
