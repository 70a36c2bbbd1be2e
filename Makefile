# Every target sets up what it needs from a bare checkout. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
# Tests that start engines, which want the processors for themselves.
ENGINES := tests/vllm tests/gateway/test_vllm.py tests/gateway/test_examples_models.py
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup browser redis postgres vllm demo test lint format bench peers docs clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(VENV)/.ready  ## make the virtual environment (CPU build of torch, nothing of CUDA)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

browser:  ## install headless Chromium for the report's test, where that is possible
	sh scripts/install-browser.sh

redis:  ## install a Redis server for the store's tests, where that is possible
	sh scripts/install-redis.sh

postgres:  ## install a PostgreSQL server for the answers' tests, where that is possible
	sh scripts/install-postgres.sh

vllm:  ## make the environment of vLLM's tests (CPU build), where that is possible
	$(PYTHON) scripts/make_vllm_env.py --if-possible

demo: setup  ## run the main job on the shipped model: runs/demo/report.html
	$(BIN)/recollect demo

test: setup browser redis postgres vllm  ## run the tests, JOBS=2 files at a time, then those with engines
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(addprefix --ignore=,$(ENGINES))
	$(BIN)/python -m pytest $(ENGINES)

lint: setup  ## formatting, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## our own benchmarks; those against peers need `make peers` first
	$(BIN)/python benchmarks/kv_decode_step.py

peers:  ## virtual environments of the packages we measure ourselves against
	$(PYTHON) benchmarks/peers/make_env.py kvpress
	$(PYTHON) benchmarks/peers/make_env.py quantized-cache
	$(PYTHON) benchmarks/peers/make_env.py gptcache
	$(PYTHON) benchmarks/peers/make_env.py cache-dit
	$(PYTHON) scripts/make_vllm_env.py lmcache

docs: setup  ## regenerate the tables in docs/ and README.md
	$(BIN)/python scripts/generate_docs.py

clean:  ## remove environments, caches and runs
	rm -rf $(VENV) .venvs runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
