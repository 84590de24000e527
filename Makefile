# ReconX for PyTorch Lightning. `make help` lists the targets.
SHELL := /bin/bash

VENV ?= .venv
BIN := $(VENV)/bin
# The first interpreter that runs and is new enough; PYTHON=/path/to/python overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
STAMP := $(VENV)/.installed
SCENE ?=
# Where the report goes; a real scene gets a folder of its own.
OUT ?= report$(if $(SCENE),-$(notdir $(abspath $(SCENE))))
# Spinning threads beside busy neighbours are far slower than passive ones.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup demo test lint docs bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(STAMP) ## make .venv and install the package with its development tools

$(STAMP): setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || \
	  { echo "Python 3.11 or newer is needed; found $$(python3 --version). Say make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP) ## the main job, small: pack, train in stages, generate, fit, score, report (SCENE=folder: a real scene)
	$(BIN)/reconx weights fetch lpips
	$(MAKE) --no-print-directory runs/demo/stage2/weights.safetensors
	$(BIN)/python evaluate.py --config configs/demo/evaluate.yaml $(if $(SCENE),--shards null --scene '$(SCENE)') --out $(OUT)
	@echo "Open $(OUT)/index.html"

# Every step goes on where it was stopped: packing by shard, training from its last checkpoint, evaluation by scene.
runs/demo/.packed: | $(STAMP)
	$(BIN)/reconx procedural data/procedural-train --clips 256 --first_seed 0 --points 2048
	$(BIN)/reconx procedural data/procedural-val --clips 8 --first_seed 1000000 --points 2048
	$(BIN)/reconx procedural data/procedural-test --clips 2 --first_seed 2000000
	@mkdir -p $(@D) && touch $@

runs/demo/base/weights.safetensors: | runs/demo/.packed
runs/demo/stage1/weights.safetensors: | runs/demo/base/weights.safetensors
runs/demo/stage2/weights.safetensors: | runs/demo/stage1/weights.safetensors
runs/demo/%/weights.safetensors:
	$(BIN)/python train.py fit -c configs/demo/$*.yaml

test: $(STAMP) lint ## lint and the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP) ## the documentation as a site -> site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

bench: $(STAMP) ## the measurements of benchmarks/README.md
	$(BIN)/python -m benchmarks

clean: ## remove what demo, docs and test made (not .venv, not your own data and runs)
	rm -rf runs/demo report site data/procedural-train data/procedural-val data/procedural-test .pytest_cache .ruff_cache .mypy_cache
