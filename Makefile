# `make demo`, `make test`: on a machine with only Python 3.11+ and make, each sets everything up first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint clean

demo: .venv/ready
	$(BIN)/pyro-ar occlusion --out results/occlusion

test: .venv/ready lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: .venv/ready lint
	$(BIN)/python -m pytest -n 2 -m ""

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv results dist build
