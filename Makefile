# Everything starts from a fresh clone: Python 3.11 or newer, git and make are enough. `make help` lists the targets.
SHELL := bash
PY ?= python3
VENV ?= .venv
PORT ?= 8000
WORKERS ?= 2
ARGS ?= --config nano --corpus stories --minutes 4
GIGABYTES ?= 2
TESTS ?= tests --ignore=tests/book
IN_A_BROWSER := tests/book/test_site.py tests/book/test_live.py

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export PYTHONUNBUFFERED := 1

# Without VENV=..., or with one that does not exist yet, the environment is made here and kept up to date. One that
# exists already, or that `make pod` made, is used as it is: nothing is installed into it, the package is taken from
# this folder, and a target asks for what it needs alone.
ifneq ($(wildcard $(VENV)/.pod),)
GIVEN := $(VENV)
else ifneq ($(origin VENV),file)
GIVEN := $(wildcard $(BIN)/python)
endif
ifneq ($(GIVEN),)
export PYTHONPATH := $(CURDIR)
READY := given-everything
READY_FOR_NOTEBOOKS := given-notebooks
READY_TO_TRAIN := given-train
else
READY := $(VENV)/.ready
READY_FOR_NOTEBOOKS := $(READY)
READY_TO_TRAIN := $(READY)
endif

# To render the pages takes a small environment; where the whole one is there already, that is taken.
SITE := .venv-site
ifneq ($(GIVEN),)
PAGES_READY := given-site
PAGES_BIN := $(BIN)
else ifneq ($(wildcard $(VENV)/.ready),)
PAGES_READY := $(READY)
PAGES_BIN := $(BIN)
else
PAGES_READY := $(SITE)/.ready
PAGES_BIN := $(SITE)/bin
endif

PAGES := $(wildcard notebooks/*.ipynb book/*.md book/*.bib book/tools/*.py book/_static/*.* book/_static/live/* \
         tilelli_nb/weights/*/* _config.yml _toc.yml)

NEW_ENOUGH = $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "Python 3.11 or newer is needed: make PY=/path/to/python3.11" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: book serve test test-package test-chapter test-site lab sync execute student train pretrain reproduce studies pod check lint oldest address \
        clean help given-everything given-notebooks given-train given-site

book: _build/html/index.html ## build the site from the committed outputs
	@echo "The book: _build/html/index.html"

_build/html/index.html: $(PAGES) | $(PAGES_READY)
	@echo "Building the site: about half a minute. No notebook is executed."
	@$(PAGES_BIN)/python book/tools/build.py vendor
	@$(PAGES_BIN)/jupyter-book build . -n -W --keep-going -q \
	  || { rm -rf _build/.doctrees $@; echo "The site has warnings: see above" >&2; exit 1; }
	@touch $@

serve: book ## build the site and serve it on this machine (PORT=8000)
	@echo "Serving http://127.0.0.1:$(PORT)/ until Ctrl-C"
	@$(PAGES_BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: $(READY) ## unit tests, every notebook, the site in a browser
	@echo "Testing the package, then every notebook, then the site: about 12 minutes on 2 cores."
	@rm -rf _build/test && mkdir -p _build/test
	@failed=0; \
	phase() { $(BIN)/python -m pytest "$${@:2}" 2>&1 | tee "_build/test/$$1.log"; \
	          [ "$${PIPESTATUS[0]}" -eq 0 ] || failed=1; }; \
	phase 1-package tests $(addprefix --ignore=,$(IN_A_BROWSER)) -n $(WORKERS) --dist loadscope --no-loadscope-reorder; \
	OMP_NUM_THREADS=1 phase 2-notebooks --nbval-lax notebooks -n $(WORKERS) --dist loadscope; \
	phase 3-site $(IN_A_BROWSER) -n $(WORKERS) --dist loadgroup; \
	echo; echo "Package, notebooks, site:"; \
	for log in _build/test/*.log; do tail -n 1 "$$log"; done; \
	exit $$failed

test-package: $(READY) ## the tests of the package alone (TESTS=tests/data for one folder or file)
	@$(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --dist loadscope

test-chapter: $(READY) ## one chapter: its cells, its exercises, what a page needs (N=07)
	@ls notebooks/$(N)_*.ipynb >/dev/null 2>&1 || { echo "Which chapter? For example: make test-chapter N=07" >&2; exit 1; }
	@$(BIN)/python -m pytest --nbval-lax notebooks/$(N)_*.ipynb
	@$(BIN)/python -m pytest tests/book/test_book.py tests/book/test_exercises.py -k $(N)_

test-site: $(READY) ## build the site and look at every page in Chromium
	@$(BIN)/python -m pytest $(IN_A_BROWSER) -n $(WORKERS) --dist loadgroup

lab: $(READY_FOR_NOTEBOOKS) ## open the notebooks in JupyterLab
	@echo "Starting JupyterLab: a few seconds. Stop it with Ctrl-C."
	@$(BIN)/python -m jupyter lab --notebook-dir=. notebooks

sync: $(READY_FOR_NOTEBOOKS) ## carry the text of book/*.md into the notebooks (NAMES=01 for one)
	@$(BIN)/python book/tools/build.py sync $(NAMES)

execute: $(READY_FOR_NOTEBOOKS) ## run the notebooks whose code changed, in place (NAMES=01 for one, FORCE=1 for all)
	@echo "Executing stale notebooks: about half a minute each."
	@$(BIN)/python book/tools/build.py execute $(NAMES) $(if $(FORCE),--force)

address: ## write the book's address everywhere (URL=https://HOST/OWNER/NAME), or take it out
	@$(PY) book/tools/address.py $(URL)

student: $(READY_FOR_NOTEBOOKS) ## write copies of the notebooks without the solutions into student/ (NAMES=01 for one)
	@$(BIN)/python book/tools/build.py student $(NAMES)

train: $(READY_TO_TRAIN) ## train a model: ARGS="--config nano --corpus stories --minutes 4"
	@echo "Training: tilelli train $(ARGS)"
	@$(BIN)/python -c 'from tilelli_nb.cli.app import main; main()' train $(ARGS)

reproduce: $(READY_TO_TRAIN) ## the whole recipe at laptop size in ten minutes, and a report; the same command goes on
	@echo "Data, pretraining, chat, evaluation, report into runs/reproduce: about ten minutes on 2 cores."
	@$(BIN)/python book/experiments/reproduce.py $(OPTIONS)

studies: $(READY_TO_TRAIN) ## the studies of chapter 14 once more, into runs/studies: at most 150 CPU minutes; the same command goes on
	@echo "Training nearly two hundred small models, two side by side: an hour or more. Let nothing else run meanwhile."
	@OMP_NUM_THREADS=1 $(BIN)/python book/experiments/lab.py --out runs/studies $(OPTIONS)

pretrain: $(READY_TO_TRAIN) ## the 50,000 steps on FineWeb-Edu; the same command goes on (GIGABYTES=2, OPTIONS="--max-dollars 5")
	@echo "Pretraining lite_10m into runs/pretrain: hours on a GPU. What it will cost: tilelli cost"
	@$(BIN)/python -c 'from tilelli_nb.cli.app import main; main()' train --config lite_10m --corpus fineweb-edu \
	  --gigabytes $(GIGABYTES) --out runs/pretrain --resume $(OPTIONS)

pod: ## on a rented machine: an environment that keeps its PyTorch, and JupyterLab's Python 3 from there
	@echo "Setting up: a minute or two, or more if the PyTorch of this machine is too old and a new one is fetched."
	@$(PY) -m venv --system-site-packages $(VENV)
	@$(INSTALL) -e '.[data,book]'
	@$(BIN)/python -m ipykernel install --user
	@touch $(VENV)/.pod
	@echo "Next: make pretrain, or run notebooks/10_renting.ipynb"

check: ## say OK or MISSING for everything the book needs
	@"$$([ -x $(BIN)/python ] && echo $(BIN)/python || echo $(PY))" book/tools/check_environment.py

lint: $(READY) ## check the style of the code and its format
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check book tests tilelli_nb

# GPU machines often have the oldest PyTorch that pyproject.toml allows. Its Triton's interpreter breaks with NumPy 2.4.
OLDEST ?= .venv-oldest
OLD_TORCH := $(shell sed -n 's/^ *"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
oldest: ## tests of model, training and kernels with the oldest PyTorch that is allowed
	@[ -x $(OLDEST)/bin/python ] || { \
	  echo "Installing PyTorch $(OLD_TORCH) into $(OLDEST): some minutes, about 5 GB."; \
	  $(PY) -m venv $(OLDEST) && $(OLDEST)/bin/python -m pip install -q --disable-pip-version-check \
	    "torch==$(OLD_TORCH).*" "numpy<2.4" safetensors pyyaml tqdm typer pyarrow scikit-learn pytest pytest-xdist; }
	@$(OLDEST)/bin/python -c 'import torch, triton, numpy; print("PyTorch", torch.__version__, "Triton", triton.__version__)'
	@PYTHONPATH="$(CURDIR)" $(OLDEST)/bin/python -m pytest -q -o addopts= -n $(WORKERS) --dist loadscope \
	  tests/model tests/training tests/experiments

clean: ## remove what was built; the environment and trained runs stay
	@rm -rf _build dist build *.egg-info .pytest_cache .ruff_cache
	@find book notebooks tests tilelli_nb \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
	@echo "Clean."

help: ## this list
	@echo "make TARGET, on a fresh clone too:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'
	@echo "VENV=path uses an environment of your own; PY=python3.12 names the Python to make one with."

given-everything given-notebooks given-train given-site:
	@$(BIN)/python book/tools/check_environment.py --quiet $(@:given-%=%)

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(NEW_ENOUGH)
	@$(PY) -m venv $(VENV)
	@$(BIN)/python book/tools/install.py everything
	@touch $@

$(SITE)/.ready: requirements.txt
	@$(NEW_ENOUGH)
	@$(PY) -m venv $(SITE)
	@$(SITE)/bin/python book/tools/install.py site
	@touch $@
