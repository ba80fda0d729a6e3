# Only Python 3.11 or newer and make are assumed; the first target builds .venv, later ones reuse it.
PYTHON ?= python3.11
OUT ?= demo
VENV := .venv
RUN := $(VENV)/bin
# Parts of the installation that are optional (pyproject.toml); others are installed when named.
EXTRAS ?= dev
STAMP := $(VENV)/.installed-$(EXTRAS)

WORLDS ?= 1 2 3
# Processes that share the tests; each computes on one thread.
PROCESSES ?= logical
# The slowest are shown, since all together have ten minutes on two cores.
# One writes the bytecode that the others read, and the processes that tests start.
PYTEST := PYTHONDONTWRITEBYTECODE= $(RUN)/python -m pytest -q -n $(PROCESSES) --maxprocesses 8 \
	--dist worksteal --durations=20 --durations-min=5

.DEFAULT_GOAL := help
.PHONY: help demo worlds attacks tables docs-tables docs test test-integration test-slow examples check fix clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/ -/'

# The stamp is written last, so that an interrupted install is started afresh.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing mosa into $(VENV) from constraints.txt (once, a few minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mosa needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP)  ## align the testbed, attack it, and write demo/report.html (no GPU needed)
	@$(RUN)/mosa demo --out $(OUT)

worlds: $(STAMP)  ## the demo on three fresh worlds that nobody tuned to (build and demo)
	@for seed in $(WORLDS); do \
		$(RUN)/mosa testbed build --world-seed $$seed --out runs/testbed-$$seed \
		&& $(RUN)/mosa demo --testbed runs/testbed-$$seed/shallow --out runs/demo-$$seed || exit; \
	done

attacks: $(STAMP)  ## every attack against the demo's four models (the tables in docs/runs.md)
	@test -f $(OUT)/report.html || $(RUN)/mosa demo --out $(OUT)
	@$(RUN)/mosa evaluate --model testbed \
		--adapter none $(OUT)/adapters/initial $(OUT)/adapters/mosa $(OUT)/adapters/mosa_robust \
		--attacks all,tap:middle_smoke,ept:middle_smoke,adv_prefix:middle_smoke \
		--preset smoke --sets testbed --limit 20 \
		--judges truth,truth@canvas,refusal --out runs/attacks
	@$(RUN)/mosa results runs/attacks --matrix --by-variant --judge truth/2/world-0
	@$(RUN)/mosa results runs/attacks --paper --judge truth/2/world-0

tables: $(STAMP)  ## methods over three training seeds, a factorial, windows: runs/tables/tables.md (takes hours)
	@$(RUN)/mosa testbed tables --out runs/tables

docs-tables: $(STAMP)  ## write the tables of the documentation from those of the program
	@$(RUN)/python docs/tables.py

docs: docs-tables  ## build the documentation into build/site; a warning is an error
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[docs]"
	@$(RUN)/python -m sphinx -q -W --keep-going -E -c docs -d build/doctrees . build/site
	@echo "build/site/index.html"

test: $(STAMP)  ## the tests that need no patience
	@$(PYTEST)

test-integration: $(STAMP)  ## those with a browser, several processes, other tools' programs, whole demos
	@$(PYTEST) -m 'integration and not slow'

test-slow: $(STAMP)  ## every test, those of the extras eval, docs and inspect too
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[dev,eval,docs,inspect,notebook]"
	@$(PYTEST) -m ''

examples: $(STAMP)  ## execute the notebook and the script of examples/ (a few minutes)
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[dev,notebook]"
	@$(RUN)/python -m pytest -q -m "" tests/test_examples.py

check: $(STAMP)  ## lint, format and types, changing nothing
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .
	@$(RUN)/pyright

fix: $(STAMP)  ## lint and format, mending what can be mended
	@$(RUN)/ruff check --fix .
	@$(RUN)/ruff format .

clean:  ## remove .venv, caches and the demo's output
	rm -rf $(VENV) $(OUT) build dist .pytest_cache .ruff_cache .hypothesis
