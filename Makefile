# lowerbound: `make help` lists the targets. Everything is installed into .venv, once.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= jobs/configs/digits-vae.yaml
ARGS ?=
# uv does not read pip's list of local wheel folders; this passes it on if there is one
export UV_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install data icons train-local train-ray compare submit cluster-local cluster-local-down
.PHONY: test lint types format reference docs bench bench-peers bench-start bench-data bench-checkpoints gpu-check gpu-wheels chaos lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

# Compile bytecode now: with PYTHONDONTWRITEBYTECODE (containers) every start would compile all of torch again.
install: .venv/installed  ## install the runtime dependencies into .venv (other targets do it when needed)

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: Python 3.11 or newer is needed; set PYTHON=python3.11'; exit 1; }
	@$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/installed: requirements.lock | $(BIN)/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	@touch $@

.venv/installed-dev: requirements-dev.lock .venv/installed
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements-dev.lock
	@touch $@

data: data/digits/validation/index/index.json  ## pack the embedded digit scans into data/digits

data/digits/validation/index/index.json: | .venv/installed
	$(BIN)/python -m jobs.pack --source digits --out data/digits

icons: data/icons/combinations/index/index.json  ## draw and pack captioned icons, binary, into data/icons

data/icons/combinations/index/index.json: | .venv/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group icons -c requirements-dev.lock
	$(BIN)/python -m jobs.pack --source icons --levels 2 --out data/icons

# The embedded set that a configuration names
DATA_OF_CONFIG = $(if $(findstring icons,$(CONFIG)),icons,data)

train-local: .venv/installed $(DATA_OF_CONFIG)  ## train on this machine: CONFIG=file.yaml ARGS="optim.lr=1e-4 ..."
	$(BIN)/python -m jobs.train_local $(CONFIG) $(ARGS)

train-ray: .venv/installed $(DATA_OF_CONFIG)  ## train with Ray Train, two CPU workers on this machine
	$(BIN)/python -m jobs.train $(CONFIG) ray.workers=2 $(ARGS)

compare: .venv/installed data  ## train each model family on the digits; write a table of bounds and a picture of samples
	$(BIN)/python -m jobs.compare $(FAMILIES) trainer.images=$(IMAGES) $(ARGS)

FAMILIES ?= $(foreach family,vae hvae ladder diffusion,jobs/configs/digits-$(family).yaml)
IMAGES ?= 300000

submit: .venv/installed  ## submit a run to a Ray cluster: CONFIG=file.yaml ARGS="--address http://head:8265 --workers 8 --follow"
	$(BIN)/python -m jobs.submit $(CONFIG) $(ARGS)

cluster-local: .venv/installed  ## start a Ray cluster of HOSTS hosts on this Linux machine (network namespaces, root)
	$(BIN)/python -m cluster.local up --hosts $(HOSTS) $(ARGS)

cluster-local-down:  ## stop that cluster and remove everything
	$(BIN)/python -m cluster.local down

HOSTS ?= 3

test: .venv/installed-dev  ## run the tests in two processes; some of them: ARGS="tests/trainer -k noise"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/installed-dev  ## check style, spelling and which package imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

types: .venv/installed-dev  ## check types
	$(BIN)/mypy

format: .venv/installed-dev  ## format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

reference: .venv/installed  ## regenerate jobs/configs/schema.json and docs/configuration.md from the configuration's fields
	$(BIN)/python -m jobs.config --schema > jobs/configs/schema.json.new && mv jobs/configs/schema.json.new jobs/configs/schema.json
	$(BIN)/python -m jobs.config --reference > docs/configuration.md.new && mv docs/configuration.md.new docs/configuration.md

docs: .venv-docs/installed  ## build the documentation into site/, with every link checked
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict  # not --quiet, which leaves warnings out of --strict

.venv-docs/installed: requirements-docs.lock | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-docs
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-docs/bin/python -r requirements-docs.lock
	@touch $@

bench: .venv/installed-dev  ## measure the loop against bare PyTorch, and the diffusion step against other libraries
	$(BIN)/python -m tests.benchmarks.loop $(ARGS)
	$(BIN)/python -m tests.benchmarks.diffusion

bench-peers: .venv/installed-dev  ## install diffusers and denoising-diffusion-pytorch for `make bench` into .venv-bench
	$(BIN)/uv venv --quiet --clear .venv-bench
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-bench/bin/python --group bench

bench-start: .venv/installed-dev data  ## measure the time from jobs.submit to the first step (cluster: RAY_API_SERVER_ADDRESS)
	$(BIN)/python -m tests.benchmarks.start $(CONFIG) $(ARGS)

bench-data: .venv/installed-dev  ## measure the data path: speed against the decode limit and other libraries, bytes read, memory
	$(BIN)/python -m tests.benchmarks.data $(ARGS)

bench-checkpoints: .venv/installed-dev  ## measure the time and memory that checkpoints cost
	$(BIN)/python -m tests.benchmarks.checkpoints $(ARGS)

# On a machine with a GPU, torch and accelerate, and perhaps nothing else: with its own Python.
gpu-check:  ## check and measure on the CUDA GPU of this machine with PYTHON: ARGS="--only fsdp" for some
	PYTHONPATH=.gpu$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m tests.gpu $(ARGS)

gpu-wheels:  ## put the one package that such a machine may lack (obstore) into .gpu/, to be carried there
	$(PYTHON) -m pip install --quiet --no-deps --target .gpu --upgrade "$$(grep -m 1 '^obstore==' requirements.lock)"

chaos: .venv/installed-dev  ## inject faults into runs, hosts and stores and print the results; some of them: ARGS="--only ranks,stores"
	$(BIN)/python -m tests.chaos $(ARGS)

lock: .venv/installed  ## resolve the versions of all dependencies again
	$(BIN)/uv pip compile $(LOCK_OPTIONS) pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile $(LOCK_OPTIONS) --group test --group lint -c requirements.lock pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile $(LOCK_OPTIONS) --group docs -o requirements-docs.lock
	sed -i -E 's/\+cpu$$//; /^(nvidia|cuda)-|^triton==/d' requirements.lock requirements-dev.lock  # torch pins these itself, where it needs them

LOCK_OPTIONS := --quiet --no-emit-index-url --no-emit-find-links --no-annotate --no-header

clean:  ## remove .venv, .venv-docs, site, data/digits, data/icons and the caches; runs stay
	rm -rf .venv .venv-docs site data/digits data/icons .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
