# make demo   the whole loop on real flights, with the dashboard   (ARGS="--headless --json", "--help", …)
# make test   everything that proves it                            (ARGS="-k drift", JOBS=4, …)
#             (a slow test that fails has one more try; what failed at the first is told at the end)
#             (drawn examples are the same every time; ARGS="--hypothesis-profile=explore" draws others)
# make check  lint, types, the import table and the fast tests
# make bench  ours, the peer and the limit, measured in one run
# Each sets up what it needs: a virtual environment in .venv and, where it runs as root on Debian, the servers that the tests talk to.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
ARGS ?=
JOBS ?= 2
# What one process has compiled, the hundreds that the tests start need not compile again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check bench setup packages clean

# Nothing but the demo itself writes to standard output, so that `--json` can be piped.
demo: setup
	@$(BIN)/trimtab demo $(ARGS)

# mypy has the processor time that the tests leave, as they wait for servers and clocks; its errors are told at the end.
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	nice -n 19 $(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS); tests=$$?; \
	wait $$types || $(BIN)/mypy || exit 1; exit $$tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow" $(ARGS)

bench: setup
	@for script in $$(grep -l __main__ benchmarks/*.py); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# What makes a virtual environment comes first; the servers are installed beside what goes into it.
setup:
	@scripts/debian-packages python3-venv
	@$(MAKE) --silent --no-print-directory --jobs=2 packages $(STAMP) >&2

packages:
	@scripts/debian-packages

# Not compiled: of 35,000 files a sixth is ever imported, and that compiles it.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into .venv; this takes a few minutes the first time" >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip >&2
	@$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[all]' >&2
	@$(BIN)/python -m pip check >&2
	@touch $@

clean:
	rm -rf .venv .trimtab build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
