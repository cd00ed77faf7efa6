# One virtual environment each: the default stack, and the one of paddlepaddle-gpu on PyPI.
PYTHON ?= python3
VENV := .venv
VENV26 := .venv-paddle26
BIN := $(VENV)/bin

.PHONY: run test lint suite smoke-paddle26 clean

run: $(VENV)/run.done
	$(BIN)/python examples/hello_world.py

test: lint suite smoke-paddle26

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

suite: $(VENV)/dev.done
	$(BIN)/pytest

smoke-paddle26: $(VENV26)/dev.done
	$(VENV26)/bin/pytest tests/smoke

$(VENV)/run.done: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[cpu]"
	touch $@

$(VENV)/dev.done: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[cpu,dev]"
	touch $@

$(VENV26)/dev.done: setup.py
	$(PYTHON) -m venv $(VENV26)
	$(VENV26)/bin/pip install --quiet -e ".[paddle26-cpu]" pytest
	touch $@

clean:
	rm -rf $(VENV) $(VENV26) build *.egg-info
