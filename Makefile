# One virtual environment each: the default stack, and the one of paddlepaddle-gpu on PyPI.
PYTHON ?= python3
VENV := .venv
VENV26 := .venv-paddle26
BIN := $(VENV)/bin

.PHONY: run test lint suite smoke-paddle26 train clean

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

# Corpus, vocabulary, training, packaging, evaluation: each goes on from what the one before left in
# WORK, and training from its last checkpoint. MBPP names the benchmark's mbpp.jsonl, if it is at hand.
WORK ?= build/training
MINUTES ?= 90
MBPP ?=

train: $(VENV)/dev.done
	$(BIN)/python training/packages.py $(WORK)/wheels
	$(BIN)/python training/corpus.py $(WORK)/wheels $(WORK)/corpus $(if $(MBPP),--mbpp $(MBPP))
	$(BIN)/python training/tokenizer.py $(WORK)/corpus $(WORK)/data
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python training/train.py $(WORK)/data $(WORK)/run --minutes $(MINUTES)
	$(BIN)/python training/package.py $(WORK)/run/checkpoint.pt $(WORK)/data paddlenlp_codegen_task/builtin
	$(BIN)/python training/evaluate.py paddlenlp_codegen_task/builtin $(WORK)/corpus $(WORK)/data

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
