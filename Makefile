# Needs only Python 3.10+, pip and make. Every target makes .venv itself, and again what pyproject.toml changed.
#   make test PYTHON=python3.12 VENV=.venv-3.12     another Python, beside the first

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 3

PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test coverage bench soak mutants docs lint clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(VENV)/.installed  ## what batchwise does, on the sandbox; LIVE=1 for the real API (needs ANTHROPIC_API_KEY)
	@$(PY) docs/examples/$(if $(filter-out 0,$(LIVE)),demo_live,demo).py

lint: $(VENV)/.installed-dev  ## ruff, mypy, import contracts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

test: lint  ## lint, then all tests but the soak; ARGS="-k name" for some
	HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-ci} $(PY) -m pytest -m "not soak" --ignore=tests/benchmarks \
		-n $(WORKERS) $(ARGS)

coverage:  ## the same tests with coverage of branches; a share below the one in pyproject.toml fails; takes twice as long
	$(MAKE) test ARGS="--cov --cov-report=term:skip-covered $(ARGS)"

soak: $(VENV)/.installed-dev  ## the long runs
	HYPOTHESIS_PROFILE=soak $(PY) -m pytest -m soak --timeout=0 $(ARGS)

mutants: $(VENV)/.installed-mutants  ## wrong variants of planning/, which its tests have to catch; takes hours
	HYPOTHESIS_PROFILE=mutants $(VENV)/bin/mutmut run --max-children $(WORKERS) $(ARGS)
	@$(VENV)/bin/mutmut results | grep -v 'not checked' || true

bench: $(VENV)/.installed-dev  ## the benchmarks, beside the bare SDK in the same run
	$(PY) -m tests.benchmarks $(ARGS)

docs: $(VENV)/.installed-docs  ## the documentation into site/, strictly
	$(PY) -m zensical build --strict --clean

clean:  ## remove .venv and all that is built or cached
	rm -rf $(VENV) .cache .nox build dist site mutants .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache .ruff_cache
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# .installed: the package; .installed-dev, .installed-docs: the dependency group of that name besides.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "batchwise needs Python 3.10 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	$(PY) -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml $(VENV)/.installed
	$(PY) -m pip install --quiet --group $*
	@touch $@
