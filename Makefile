# `make` alone lists what there is. Every target makes the environment it needs (.venv) by itself.
#   make PYTHON=python3.12 ...   takes that interpreter for a new .venv
#   make NO_UV=1 ...             takes venv and pip even where uv is installed
#   make test ARGS="tests/diffusion -x"
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo scenes-bundle test test-slow bench-gpu lint format bazel lock

BIN := .venv/bin
# A stamp, so that the second call of any target installs nothing.
INSTALLED := .venv/.unialign-installed
ARGS ?=
export PYTHON NO_UV

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(INSTALLED): requirements.lock pyproject.toml tools/install.sh
	@tools/install.sh
	@touch $@

install: $(INSTALLED) ## only make the environment, .venv

demo: $(INSTALLED) ## draw scenes, train one model on six tasks, score it, write gallery and report
	@$(BIN)/unialign demo $(ARGS)

scenes-bundle: $(INSTALLED) ## train the model that comes with the package
	@tools/scenes_bundle.sh $(ARGS)

test: $(INSTALLED) ## the tests, without the slow ones
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(INSTALLED) ## the slow tests
	@$(BIN)/python -m pytest -m slow $(ARGS)

# The published model on one GPU, in bfloat16: training, sampling, compile time, each beside PyTorch.
# The Python needs JAX for CUDA, and torch for CUDA unless ARGS=--no-torch:
#   make bench-gpu BENCH_PYTHON=python3 ARGS=--no-torch
BENCH_PYTHON ?= $(BIN)/python
bench-gpu: ## on one GPU: train, sample and compile-time benchmarks at full size, with profiles
	PYTHONPATH=. $(BENCH_PYTHON) benchmarks/train_step.py --full $(ARGS) \
	  --profile profiles/train --out benchmarks/results/train_step_cuda.json
	PYTHONPATH=. $(BENCH_PYTHON) benchmarks/sample_step.py --full $(ARGS) \
	  --profile profiles/sample --out benchmarks/results/sample_step_cuda.json
	PYTHONPATH=. $(BENCH_PYTHON) benchmarks/compile_time.py --platform cuda --width 1536 \
	  --dtype bfloat16 --latents 64 --text 256 --remat full \
	  --out benchmarks/results/compile_time_cuda.json

lint: $(INSTALLED) ## ruff (format and rules) and pyright
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# pyright's PyPI package fetches the program itself through npm on its first call.
	@if $(BIN)/pyright --version > /dev/null 2>&1; then echo $(BIN)/pyright; $(BIN)/pyright; else \
	  echo "lint: pyright left out, it could not be fetched (npm registry out of reach?)"; fi

format: $(INSTALLED) ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bazel: $(INSTALLED) ## check the BUILD files: buildifier, bazel query, bazel test
	@tools/bazel/check.sh

# One set of versions for all Pythons (fork-strategy fewest): what is tested is what is installed.
lock: ## resolve requirements.lock anew (needs uv)
	@uv --version > /dev/null || { echo "make lock needs uv: python3 -m pip install uv"; exit 1; }
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
	  --generate-hashes --extra demo --extra dev --custom-compile-command "make lock" \
	  --output-file requirements.lock pyproject.toml
	@! grep -n '://' requirements.lock || { echo "requirements.lock names an address"; exit 1; }
