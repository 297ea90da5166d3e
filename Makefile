# Every target sets up what it needs; a second call finds it done.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo test test-quick check format tensorboard reproduce bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Install digitlab and the locked versions of its libraries into .venv
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: $(READY) ## Train minibatch k-means from one image of each digit, in seconds
	$(BIN)/python train.py model=kmeans init=digit

test: $(READY) ## Run all tests; those on real MNIST run where data/ or DIGITLAB_DATA has it
	$(BIN)/python -m pytest

test-quick: $(READY) ## Run the tests that take seconds
	$(BIN)/python -m pytest -m 'not slow and not mnist'

check: $(READY) ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## Format the code, and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tensorboard: $(READY) ## Show all runs in TensorBoard
	$(BIN)/tensorboard --logdir outputs

reproduce: $(READY) ## Run the seed report's experiments and ours, one after the other (20 minutes)
	for name in q1b q1c kmeans_best q2b q2c autoencoder_best; do $(BIN)/python train.py experiment=$$name || exit 1; done

bench: $(READY) ## Measure speed, as ratios against peers in the same run
	$(BIN)/python scripts/benchmark.py

clean: ## Delete caches and the environment; outputs/ and data/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
