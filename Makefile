# From a fresh clone: `make demo` shows the whole way on synthetic X-rays, `make test` runs the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint wheel clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one with make PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/developed: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	rm -rf demo
	$(BIN)/covidjax train --model darkcovidnet --epochs 20 --run demo/run
	$(BIN)/covidjax sample demo/xrays --images 60 --seed 1
	$(BIN)/covidjax score demo/xrays --checkpoint demo/run --output demo/scores.csv

test: .venv/developed
	$(BIN)/python -m pytest

test-slow: .venv/developed
	$(BIN)/python -m pytest -m slow

lint: .venv/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# Builds the wheel and uses it from an empty folder, in an environment of its own.
wheel: .venv/developed
	bash .ci/wheel $(PYTHON)

clean:
	rm -rf .venv build dist demo
