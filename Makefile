# `make demo` and `make test` are all a newcomer needs: each makes .venv and installs into it first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: site demo test test-crash bench lint format clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed  ## fine-tune a small model, measure what it forgets, fit, plan and report: ten to twenty minutes
	$(BIN)/holdfast demo

test: .venv/installed  ## the whole suite, a file at a time on every core, in the order of names: the last are short
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-crash: .venv/installed  ## the suite's crash tests with 50 real kills instead of 10; rewrites docs/reliability.md
	HOLDFAST_KILLS=50 $(BIN)/python scripts/reliability.py

bench: .venv/installed  ## every benchmark, peer and ours in one run; writes the tables of docs/benchmarks.md
	$(BIN)/python benchmarks/all.py

site: .venv/installed  ## the documents as a site, in site/
	$(BIN)/python scripts/reference.py
	$(BIN)/mkdocs build

lint: .venv/installed  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed  ## what lint can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## everything made here
	rm -rf .venv site demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
