# Everything lives in .venv in this checkout; nothing else has to be done by hand.
#
#   make quickstart   set up, then the whole recipe on MovieLens-100K with a 135M model   (about 10 minutes of CPU)
#   make test         set up, then all tests
#   make chaos        training processes killed at random moments, against one never killed   (about ten minutes)
#   make lint         ruff, the import layers, pyright
#   make tiny         the development loop: a small model trained from scratch            (about 12 minutes of CPU)
#   make setup        only the environment: .venv with this package in it
#   make model        only the download of the quickstart's model
#   make clean        delete caches and build output; keep .venv and runs
#   make distclean    delete .venv too
#
# Another Python: make PYTHON=python3.12 quickstart. One folder of tests: make test PYTEST_ARGS=tests/evaluation
# Tests run in two processes; in another number: make test WORKERS=4

PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= 2
CACHE ?= ~/.cache/r2rec_jax
VENV := .venv
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test chaos lint tiny model clean distclean

help:
	@sed -n '3,/^$$/s/^#  *//p' Makefile

setup: $(VENV)/installed

$(PY):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no '$(PYTHON)' on the path; name one of version 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python must be 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

$(VENV)/installed: pyproject.toml | $(PY)
	@echo "setting up $(VENV) (once; some minutes)"
	$(PY) -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml | $(PY)
	@echo "setting up $(VENV) with the test tools (once; some minutes)"
	$(PY) -m pip install --quiet --editable '.[test]'
	@touch $(VENV)/installed $@

quickstart: $(VENV)/installed
	$(PY) -m r2rec_jax.train

tiny: $(VENV)/installed
	$(PY) -m r2rec_jax.train --config configs/tiny.yaml

model: $(VENV)/installed
	@$(PY) -c 'import sys; from r2rec_jax.data.fetch import fetch_backbone_gguf; print(fetch_backbone_gguf(sys.argv[1]))' $(CACHE)

test: $(VENV)/installed-test
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

chaos: $(VENV)/installed-test
	$(PY) -m tests.chaos --out results/chaos.json

lint: $(VENV)/installed-test
	$(PY) -m ruff check
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
