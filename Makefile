# Two commands on a fresh machine, each doing its own set-up:
#   make study   the main job on the embedded ladder; open runs/quick/report.html afterwards
#   make test    the fast tests
# And with an environment of its own:
#   make docs    the documentation's site; open site/index.html afterwards
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.installed
OUT ?= runs/quick

export TOKENIZERS_PARALLELISM := false

.PHONY: study test check verify format readme docs docs-ready clean help

study: $(READY)
	$(BIN)/interp study quick --out $(OUT)

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist loadfile

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

verify: $(READY)
	$(BIN)/python -m pytest -q -m slow

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

readme: $(READY)
	$(BIN)/python tools/readme.py

# Nothing of superscope is imported to build the site but its command lines, which need no package.
docs: $(DOCS_READY)
	$(DOCS)/bin/python tools/site.py
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	$(DOCS)/bin/python tools/site.py --check

docs-ready: $(DOCS_READY)

clean:
	rm -rf $(VENV) $(DOCS) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

help:
	@sed -n '1,5p' Makefile

$(DOCS_READY): requirements-docs.lock
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 -r requirements-docs.lock
	touch $(DOCS_READY)

# The lock is installed when it changes, not on every make.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "superscope is locked and tested for Python 3.11; run: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)
