# ReconX for PyTorch Lightning. `make help` lists the targets.
SHELL := /bin/bash

VENV ?= .venv
BIN := $(VENV)/bin
# The first interpreter that runs and is new enough; PYTHON=/path/to/python overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
STAMP := $(VENV)/.installed
BANANA := data/photographs/banana
PHOTOS ?= $(BANANA)
SCENE ?=
# Where reports go; other photographs and real scenes get a folder of their own.
MADE_OF_PHOTOS := report-photographs$(if $(filter-out $(BANANA),$(PHOTOS)),-$(notdir $(abspath $(PHOTOS))))
OUT ?= report$(if $(SCENE),-$(notdir $(abspath $(SCENE))))
# Spinning threads beside busy neighbours are far slower than passive ones.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup demo train-mini test lint docs bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP) ## make .venv and install the package with its development tools

$(STAMP): setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || \
	  { echo "Python 3.11 or newer is needed; found $$(python3 --version). Say make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP) ## photographs -> scene; a fine-tune, killed and resumed; scores -> report/index.html (SCENE=folder: a real scene)
	$(BIN)/reconx weights fetch lpips
	$(BIN)/reconx reconstruct '$(PHOTOS)' -o '$(MADE_OF_PHOTOS)' --config configs/demo/reconstruct.yaml
	$(MAKE) --no-print-directory runs/demo/stage2/weights.safetensors
	$(BIN)/python evaluate.py --config configs/demo/evaluate.yaml $(if $(SCENE),--shards null --scene '$(SCENE)') --out $(OUT)
	@echo "Open $(MADE_OF_PHOTOS)/report.html and $(OUT)/index.html"

# Every step goes on where it was stopped: packing by shard, training from its last checkpoint, evaluation by scene.
runs/demo/.packed: | $(STAMP)
	$(BIN)/reconx procedural data/procedural-train --clips 12 --first_seed 0 --points 2048 --height 64 --width 64
	$(BIN)/reconx cache data/procedural-train data/procedural-train-splats --config configs/demo/stage1.yaml
	$(BIN)/reconx procedural data/procedural-val --clips 2 --first_seed 1000000 --points 2048 --height 64 --width 64
	$(BIN)/reconx cache data/procedural-val data/procedural-val-splats --config configs/demo/stage1.yaml
	$(BIN)/reconx procedural data/procedural-test --clips 2 --first_seed 2000000
	@mkdir -p $(@D) && touch $@

# The first stage is killed at its first checkpoint, as machines are, and goes on.
runs/demo/stage1/weights.safetensors: | runs/demo/.packed
	@$(BIN)/python train.py fit -c configs/demo/stage1.yaml & run=$$!; \
	  while kill -0 $$run 2>/dev/null && ! ls $(@D)/checkpoints/*.ckpt >/dev/null 2>&1; do sleep 0.1; done; \
	  kill -KILL $$run 2>/dev/null && echo "killed at the first checkpoint; the same command goes on from there"; \
	  wait $$run 2>/dev/null; true
	$(BIN)/python train.py fit -c configs/demo/stage1.yaml

runs/demo/stage2/weights.safetensors: | runs/demo/stage1/weights.safetensors
	$(BIN)/python train.py fit -c configs/demo/stage2.yaml

train-mini: $(STAMP) ## train reconx-mini again, from its scenes on -> runs/mini/reconx-mini.safetensors
	$(MAKE) --no-print-directory runs/mini/256/weights.safetensors
	$(BIN)/reconx weights export runs/mini/256 runs/mini/reconx-mini.safetensors

# Sizes of the three stages, with the seeds of their scenes. The splats of each clip are fitted once, before training.
data/mini-64/.packed: MADE = --clips 512 --first_seed 20000000 --clips_per_shard 64
data/mini-64-val/.packed: MADE = --clips 32 --first_seed 21000000 --clips_per_shard 64
data/mini-128/.packed: MADE = --clips 256 --first_seed 20100000 --clips_per_shard 32
data/mini-128-val/.packed: MADE = --clips 16 --first_seed 21100000 --clips_per_shard 16
data/mini-256/.packed: MADE = --clips 48 --first_seed 20200000 --clips_per_shard 8
data/mini-256-val/.packed: MADE = --clips 8 --first_seed 21200000 --clips_per_shard 8
side = $(word 2,$(subst -, ,$(notdir $(@D))))
data/mini-%/.packed: | $(STAMP)
	$(BIN)/reconx procedural $(@D) --variety estimated --gap 1 --max_gap 3 --points 2048 --height $(side) --width $(side) $(MADE)
	$(BIN)/reconx cache $(@D) $(@D)-splats --config configs/mini/$(side).yaml
	@touch $@

runs/mini/64/weights.safetensors: | data/mini-64/.packed data/mini-64-val/.packed
runs/mini/128/weights.safetensors: | data/mini-128/.packed data/mini-128-val/.packed runs/mini/64/weights.safetensors
runs/mini/256/weights.safetensors: | data/mini-256/.packed data/mini-256-val/.packed runs/mini/128/weights.safetensors
runs/mini/%/weights.safetensors:
	$(BIN)/python train.py fit -c configs/mini/$*.yaml

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
	rm -rf runs/demo report report-photographs site data/procedural-{train,val,test}{,-splats} .pytest_cache .ruff_cache .mypy_cache
