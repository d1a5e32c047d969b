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
# make install LOCKED=1 takes the versions of uv.lock, with their hashes, instead of the newest.
comma := ,
LOCKED_PACKAGE = $(addprefix --extra ,$(subst $(comma), ,$(EXTRAS)))
# The tools of a release, which need other versions than the package, in an environment of their own.
TOOLS := .venv-release
SBOM ?= dist/sbom.cdx.json

.DEFAULT_GOAL := help
.PHONY: help install demo page docs notebooks test test-slow lint format clean lock tools sbom licences release-check

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make the environment and install the package with its development tools

demo: $(STAMP) ## phantoms, slices, training, evaluation and a segmented volume, in runs/demo
	$(BIN)/boltzformer demo --output runs/demo

page: ## fetch the viewer of the label server's page (needs npm)
	$(PYTHON) viewer/vendor.py

docs: $(STAMP) ## build the documentation as a site, in site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP) ## run the notebooks of examples/notebooks and store their output
	$(BIN)/python docs/tools/notebooks.py

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

lock: $(STAMP) ## write uv.lock anew where pyproject.toml asks for it; UPGRADE=1 takes the newest of everything
	$(BIN)/python -m uv lock $(if $(UPGRADE),--upgrade)

tools: $(TOOLS)/.installed ## make the environment of the release's tools

sbom: $(TOOLS)/.installed ## bill of materials (CycloneDX) of what is installed in .venv; SBOM=FILE, dist/sbom.cdx.json
	@mkdir -p $(dir $(SBOM))
	$(TOOLS)/bin/cyclonedx-py environment --gather-license-texts --output-reproducible --output-file $(SBOM) $(BIN)/python

licences: sbom ## check the licences of what is installed, and of the page's viewer, against packaging/licences.toml
	$(TOOLS)/bin/python packaging/licences.py $(SBOM) viewer/package-lock.json

release-check: $(TOOLS)/.installed ## build and check everything that a release needs, into dist/; TAG=v1.2.3 for a real one
	packaging/release-check $(BIN)/python $(TOOLS)/bin $(TAG)

clean: ## remove environments, caches and build products; runs/, demo data and checkpoints stay
	rm -rf $(VENV) .venv-second $(TOOLS) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

# Made once, and again when pyproject.toml changes. An environment left without pip by an interruption is made anew.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.10; name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV)"
ifdef LOCKED
	@$(PIP) install --quiet uv
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/python -m uv sync --locked --inexact --compile-bytecode --python $(BIN)/python $(LOCKED_PACKAGE)
else
	@{ $(PIP) install --quiet uv && $(BIN)/python -m uv pip install --compile-bytecode --python $(BIN)/python $(PACKAGE); } || \
		{ echo "uv cannot install here; pip does it, more slowly"; $(PIP) install $(PACKAGE); }
endif
	@touch $@

$(TOOLS)/.installed: pyproject.toml uv.lock $(STAMP)
	@echo "installing the release's tools into $(TOOLS)"
	@UV_PROJECT_ENVIRONMENT=$(TOOLS) $(BIN)/python -m uv sync --quiet --frozen --only-group release --python $(BIN)/python
	@touch $@
