# One virtual environment each: the default stack, and the one of paddlepaddle-gpu on PyPI.
PYTHON ?= python3
VENV := .venv
VENV26 := .venv-paddle26
BIN := $(VENV)/bin

# Tests start hundreds of processes: what one of them has compiled the others read.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test lint suite smoke-paddle26 smoke-gpu-wheel campaign benchmark benchmark-serve \
  benchmark-keystroke train clean

run: $(VENV)/run.done
	$(BIN)/python examples/hello_world.py

# Two at once: an installation and a type check use one core, and tests wait for things.
test:
	$(MAKE) --jobs=2 lint suite smoke-paddle26

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Three processes, for two cores: some tests wait for processes that start. Each may hold a model and
# Paddle, about 2 GB. Each takes a third of the files, and in the end some of the others' tests: with
# whole files only, all would wait for the last.
JOBS ?= 3
suite: $(VENV)/dev.done
	$(BIN)/pytest -n $(JOBS) --dist worksteal --durations=30

smoke-paddle26: $(VENV26)/dev.done
	$(VENV26)/bin/pytest tests/smoke

# The same on paddlepaddle-gpu itself, which runs without a GPU too. `make test` takes its CPU twin:
# these are 3.8 GB of packages, most of them CUDA's.
smoke-gpu-wheel: $(VENV26)-gpu/dev.done
	$(VENV26)-gpu/bin/pytest tests/smoke

# Hostile input in numbers, until the floors are met: tests/campaign/README.md.
campaign: MINUTES = 60
campaign: $(VENV)/dev.done
	$(BIN)/python -m tests.campaign --minutes $(MINUTES)

# Ours and every peer on the same random weights, each in an environment of its own: most of an hour.
CHECKPOINT ?= build/codegen-350M
PEERS := huggingface ctranslate openvino

benchmark: $(VENV)/benchmark.done $(PEERS:%=.venv-%/done) $(CHECKPOINT)/model.safetensors.index.json
	$(BIN)/python benchmarks/compare.py $(CHECKPOINT)
	$(BIN)/python benchmarks/report.py benchmarks/results/compare-*.json \
	  --pages docs/benchmarks.md docs/benchmarks_cn.md --plots docs/plots

# The server under load, and others with the same weights: half an hour.
benchmark-serve: $(VENV)/benchmark.done .venv-ctranslate/done $(CHECKPOINT)/model.safetensors.index.json
	$(BIN)/python benchmarks/serve.py $(CHECKPOINT)
	$(BIN)/python benchmarks/serve_report.py $$(ls benchmarks/results/serve-*.json | tail -1) \
	  --pages docs/server.md docs/server_cn.md --plots docs/plots

# Somebody types, beside others that can be typed at: a quarter of an hour.
benchmark-keystroke: $(VENV)/benchmark.done .venv-ctranslate/done .venv-openvino/done \
  $(CHECKPOINT)/model.safetensors.index.json
	$(BIN)/python benchmarks/keystroke.py $(CHECKPOINT) --pages docs/benchmarks.md docs/benchmarks_cn.md

$(CHECKPOINT)/model.safetensors.index.json: | $(VENV)/benchmark.done
	$(BIN)/python benchmarks/make_checkpoint.py $(CHECKPOINT)

# Corpus, vocabulary, training, refinement, packaging, evaluation: each goes on from what the one before
# left in WORK, and training from its last checkpoint or, where there is none, from the packaged model
# that START names, to MINUTES in all. MBPP names the benchmark's mbpp.jsonl, if it is at hand; OPTIONS
# are more of train.py's.
WORK ?= build/training
MINUTES ?= 180
START ?=
MBPP ?=
OPTIONS ?=
ROUNDS ?= 12

train: $(VENV)/dev.done
	$(BIN)/python training/packages.py $(WORK)/wheels
	$(BIN)/python training/corpus.py $(WORK)/wheels $(WORK)/corpus $(if $(MBPP),--mbpp $(MBPP))
	$(BIN)/python training/tokenizer.py $(WORK)/corpus $(WORK)/data
	mkdir -p $(WORK)/run
	$(if $(START),test -f $(WORK)/run/log.csv || cp training/log.csv $(WORK)/run)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python training/train.py $(WORK)/data $(WORK)/run --minutes $(MINUTES) \
	  $(if $(START),--start $(START)) $(OPTIONS)
	$(BIN)/python training/refine.py $(WORK)/run/checkpoint.pt $(WORK)/corpus $(WORK)/data \
	  $(WORK)/refined --rounds $(ROUNDS)
	$(BIN)/python training/package.py $(WORK)/refined/checkpoint.pt $(WORK)/data \
	  paddlenlp_codegen_task/builtin
	cp $(WORK)/run/log.csv training/log.csv
	cp $(WORK)/refined/log.csv training/refined.csv
	$(BIN)/python training/evaluate.py paddlenlp_codegen_task/builtin $(WORK)/corpus $(WORK)/data \
	  $(WORK)/wheels --checkpoint $(WORK)/refined/checkpoint.pt
	$(BIN)/python training/card.py

$(VENV)/run.done: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[cpu]"
	touch $@

# The newest pip finds the versions that go together in a third of the time. What is imported is
# compiled then, and that is a small part.
$(VENV)/dev.done: setup.py
	$(PYTHON) -m venv --upgrade-deps $(VENV)
	$(BIN)/pip install --quiet --no-compile -e ".[cpu,dev]"
	touch $@

$(VENV)/benchmark.done: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[cpu,serve,benchmark]"
	touch $@

# optimum-intel brings a torchvision that does not import beside this torch.
.venv-%/done: benchmarks/peers/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet -r $<
	.venv-$*/bin/pip uninstall --quiet --yes torchvision
	touch $@

# After the other: both installations write what this package is called and needs. Paddle 2.6 imports
# the setuptools that a new environment has.
$(VENV26)/dev.done: setup.py | $(VENV)/dev.done
	$(PYTHON) -m venv $(VENV26)
	$(VENV26)/bin/pip install --quiet --no-compile -e ".[paddle26-cpu]" pytest
	touch $@

$(VENV26)-gpu/dev.done: setup.py
	$(PYTHON) -m venv --upgrade-deps $(VENV26)-gpu
	$(VENV26)-gpu/bin/pip install --quiet --no-compile -e ".[gpu]" pytest
	touch $@

clean:
	rm -rf .venv* build dist *.egg-info
