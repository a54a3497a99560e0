# make demo   the whole loop on real flights, with the dashboard   (ARGS="--headless --json", "--help", …)
# make test   everything that proves it                            (ARGS="-k drift", JOBS=4, …)
# make check  lint, types, the import table and the fast tests
# make bench  ours, the peer and the limit, measured in one run
# Each sets up what it needs: a virtual environment in .venv and, where it runs as root on Debian, the servers that the tests talk to.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
ARGS ?=
JOBS ?= 2

.PHONY: demo test check bench setup packages clean

# Nothing but the demo itself writes to standard output, so that `--json` can be piped.
demo: setup
	@$(BIN)/trimtab demo $(ARGS)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow" $(ARGS)

bench: setup
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

setup: packages $(STAMP)

packages:
	@scripts/debian-packages

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into .venv; this takes a few minutes the first time" >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip >&2
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]' >&2
	@$(BIN)/python -m pip check >&2
	@touch $@

clean:
	rm -rf .venv .trimtab build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
