# Two commands on a fresh machine, each doing its own set-up:
#   make study   the main job on the embedded ladder; open runs/quick/report.html afterwards
#   make test    the fast tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
OUT ?= runs/quick

export TOKENIZERS_PARALLELISM := false

.PHONY: study test check verify format readme clean help

study: $(READY)
	$(BIN)/interp study quick --out $(OUT)

test: $(READY)
	$(BIN)/python -m pytest -q

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

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

help:
	@sed -n '1,3p' Makefile

# The lock is installed when it changes, not on every make.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "superscope is locked and tested for Python 3.11; run: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)
