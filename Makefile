# On a machine with Python 3.10 or newer and make, `make demo` and `make test` need nothing else:
# each makes the environment in $(VENV) first. Another interpreter: make test PYTHON=python3.12
# Up to Python 3.12 it has MONAI Label, which holds back NumPy and pydicom; make test EXTRAS=dev takes the newest instead.

PYTHON ?= python3
VENV ?= .venv
# A file's tests share servers and browsers, so they stay together; the quick ones of the last folders even out the ends.
JOBS ?= 2
PARALLEL = -n $(JOBS) --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
EXTRAS ?= $(shell $(PYTHON) -c 'import sys; print("dev,label" if sys.version_info < (3, 13) else "dev")')
PACKAGE = -e '.[$(EXTRAS)]'

.DEFAULT_GOAL := help
.PHONY: help install demo page test test-slow lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make the environment and install the package with its development tools

demo: $(STAMP) ## phantoms, slices, training, evaluation and a segmented volume, in runs/demo
	$(BIN)/boltzformer demo --output runs/demo

page: ## fetch the viewer of the label server's page (needs npm)
	$(PYTHON) viewer/vendor.py

test: $(STAMP) ## run the tests but those marked slow, in JOBS processes (2)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: $(STAMP) ## run the slow ones: kills, new processes, browsers, real sizes
	$(BIN)/python -m pytest $(PARALLEL) -m slow

lint: $(STAMP) ## check style (ruff), types (mypy) and the flow of imports (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove environments, caches and build products; runs/, demo data and checkpoints stay
	rm -rf $(VENV) .venv-second build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

# Made once, and again when pyproject.toml changes. An environment left without pip by an interruption is made anew.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.10; name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV)"
	@{ $(PIP) install --quiet uv && $(BIN)/python -m uv pip install --compile-bytecode --python $(BIN)/python $(PACKAGE); } || \
		{ echo "uv cannot install here; pip does it, more slowly"; $(PIP) install $(PACKAGE); }
	@touch $@
