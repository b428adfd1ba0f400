# The commands a user or contributor needs. `make` or `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more than two cores: many tests wait for processes.
TEST_WORKERS ?= 3
SIMGRID_PYTHON ?= /usr/bin/python3

# Without compiled sources each of the hundreds of processes that tests start would compile them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install fig_latency bench exactness llamacpp_rpc reproduce report test test_product test_report cluster_demo validate_network columns lint types check clean clean_cache test_cluster

help:  ## Show this list
	@grep -hE '^[a-z_]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: $(STAMP)  ## Make .venv with everything in it (seconds when nothing changed)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || \
	  { echo "error: there is no $(PYTHON); name one of 3.11 to 3.14: make PYTHON=..."; exit 1; }
	@$(PYTHON) .ci/check_python.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,llamacpp]'
	touch $(STAMP)

fig_latency: $(STAMP)  ## The main job: token latency against link latency, table and figure
	$(BIN)/python -m tpi_bench +experiment=fig_latency

bench: $(STAMP)  ## The engine beside its limits and the libraries (a quarter of an hour), and virtual time (two minutes)
	$(BIN)/python -m tpi_bench +experiment=bench_engine
	$(BIN)/python -m tpi_bench +experiment=bench_virtual

exactness: $(STAMP)  ## Tokens and logits of every system against Transformers, on the demo model
	$(BIN)/python -m tpi_bench +experiment=exactness

llamacpp_rpc: $(STAMP)  ## Build llama.cpp with RPC from source, once (5 minutes), for system=llamacpp_rpc
	$(BIN)/python -m baselines.llamacpp_rpc_build

reproduce: llamacpp_rpc  ## Every experiment of the ledger again, resumable, then page and ledger (70 minutes; up to 33 GB of disk)
	$(BIN)/python -m tpi_bench task=reproduce

report: $(STAMP)  ## One page of all results: results/report.html
	$(BIN)/python -m tpi_bench task=report

test: $(STAMP)  ## All tests, TEST_WORKERS=3 at a time
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

test_product: $(STAMP)  ## The tests left out of `test`: the whole product of variants, devices, collectives, windows, prompts (an hour)
	$(BIN)/python -m pytest -m product

test_report: $(STAMP)  ## The page of results in a browser: Chromium must be there (apt-get install chromium)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -m browser

cluster_demo: $(STAMP)  ## Three machines on this host, joined by Ray: a point, a survey, a figure, advice (four minutes)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[cluster]'
	$(BIN)/python -m tests.cluster_demo

test_cluster: $(STAMP)  ## The tests of clusters, with all that can go wrong with one (five minutes)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[cluster]'
	$(BIN)/python -m pytest -m cluster

validate_network: $(STAMP)  ## The virtual network against SimGrid, which others wrote (a minute)
	$(BIN)/python -m tests.network_check --simgrid-python $(SIMGRID_PYTHON)

columns: $(STAMP)  ## Write the list of all columns into results/README.md
	$(BIN)/python -m tpi_bench.report.columns

lint: $(STAMP)  ## Style: ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## Types: mypy
	$(BIN)/mypy

check: lint types test  ## What every commit passes: lint, types, tests

clean_cache:  ## Remove converted models and block files (the demo model is fetched again)
	$(BIN)/python -c "import platformdirs, shutil; shutil.rmtree(platformdirs.user_cache_path('tpi_bench'), True)"

clean:  ## Remove the virtual environment and caches of tools (not the model cache)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
