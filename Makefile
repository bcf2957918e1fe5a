# Two commands do everything from a bare clone: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a test process: on few cores two processes of one thread beat one of two.
WORKERS ?= 2

.PHONY: demo test slow lint upstream clean

demo: $(VENV)/installed
	$(BIN)/hf-mmunify demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS)

slow: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

# transformers' own common tests on every architecture, the slow ones too; `make test` has the quick ones.
upstream: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS) -m "not gpu" tests/test_upstream.py

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mlinter hf_mmunify/models

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs
