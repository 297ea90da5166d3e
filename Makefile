# Every target sets up what it needs; a second call finds it done.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup demo test test-quick test-hydra-next check format tensorboard reproduce \
    search search-smoke report bench audit clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Install digitlab and the locked versions of its libraries into .venv
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(PIP) --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: $(READY) ## Train minibatch k-means from one image of each digit, in seconds
	$(BIN)/python train.py model=kmeans init=digit

test: $(READY) ## Run all tests; those on real MNIST run where data/ or DIGITLAB_DATA has it
	$(BIN)/python -m pytest -n auto --maxschedchunk 1

test-quick: $(READY) ## Run the tests that take seconds
	$(BIN)/python -m pytest -n auto -m 'not slow and not mnist'

# Hydra's release candidate lies in front of the locked version, which stays installed. It warns of
# what Hydra 1.5 will remove, on the stderr that tests of messages compare.
NEXT := .venv/hydra-next
NEXT_VERSION := 1.4.0rc3
LAUNCHERS := hydra-joblib-launcher hydra-ray-launcher hydra-submitit-launcher
test-hydra-next: $(NEXT)/.ready ## Run the tests of sweeps and settings on hydra-core 1.4.0rc3
	PYTHONPATH=$(NEXT) PYTHONWARNINGS=ignore $(BIN)/python -m pytest -n auto --maxschedchunk 1 \
	    -W default -m 'not mnist' tests/resumable_sweeper tests/config tests/test_train.py \
	    tests/test_app.py tests/test_launchers.py tests/training/test_rerun.py
$(NEXT)/.ready: $(READY)
	$(PIP) --no-deps --upgrade --target $(NEXT) \
	    omegaconf==2.4.1rc1 $(addsuffix ==$(NEXT_VERSION),hydra-core $(LAUNCHERS))
	@touch $@

check: $(READY) ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## Format the code, and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tensorboard: $(READY) ## Show all runs in TensorBoard
	$(BIN)/tensorboard --logdir outputs

reproduce: $(READY) ## Run README's table, report differences, redraw the pictures (30 minutes)
	$(BIN)/python scripts/reproduce.py

# The seed report's search, one setting at a time. After an interruption the same target continues.
SWEEPS := learning_rate epochs batch_size weight_decay channels latent layers optimizer
SWEEP = $(BIN)/python train.py -m sweep=q2c/$$name hydra/launcher=joblib
EACH = status=0; for name in $(SWEEPS); do $(1) || { [ $$? -eq 130 ] && exit 130; status=1; }; done

search: $(READY) ## Run the seed report's search (Q2c) on all cores, and report on it
	$(call EACH,$(SWEEP)); $(BIN)/python scripts/report.py outputs/sweeps/q2c && exit $$status

search-smoke: $(READY) ## The same on a slice of the data, in minutes, to see that it works
	$(call EACH,$(SWEEP) data=smoke data.val_size=200 hydra.sweep.dir=outputs/sweeps/smoke/$$name); \
	$(BIN)/python scripts/report.py outputs/sweeps/smoke && exit $$status

RUNS ?= outputs/sweeps
report: $(READY) ## Report on the folders in RUNS (outputs/sweeps)
	$(BIN)/python scripts/report.py $(RUNS)

bench: $(READY) ## Measure speed, as ratios against peers in the same run
	$(BIN)/python scripts/benchmark.py

# Installs pip-audit into an environment of its own, so that the lock does not change.
audit: ## Look for known advisories on the lock's packages (asks the package index)
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements.lock

clean: ## Delete caches and the environment; outputs/ and data/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
