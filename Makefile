# `make` runs everything a reviewer runs. `make demo` and `make test` set up what they need.
ifeq ($(origin PYTHON),undefined)
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
else
PYTHONS := $(PYTHON)
endif
BIN := .venv/bin
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: fuzz-api all setup demo test coverage coverage-pure test-slow check lint types imports docs docs-check fmt bench interop clean

all: check test

setup:
	@for python in $(PYTHONS); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec $$python tools/setup_env.py; fi; \
		tried="$$tried, $$python is $$($$python -V 2>&1 | grep ^Python || echo not there)"; done; \
	echo "[setup] cannot go on: no Python 3.11 or newer found: $${tried#, }" >&2; \
	echo "[setup] hint: install Python 3.11, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1

demo: setup
	@$(BIN)/p2pnode demo $(if $(KEEP),--keep) $(if $(DEMO_ARGS),$(DEMO_ARGS))

# First the tests of the pure modules with every line and branch counted, then those that start processes and browsers.
test: setup
	@$(if $(ARGS),$(BIN)/python -m pytest -q -m "not slow and not interop" $(ARGS),\
		$(BIN)/python tools/measure_coverage.py --pure && $(BIN)/python tools/measure_coverage.py --rest)

# Unit, contract and simulation tests; fails for a line or branch of a pure module that none of them reaches.
coverage-pure: setup
	@$(BIN)/python tools/measure_coverage.py --pure

# The suite with lines and branches counted, the started processes too; fails when too few are reached.
coverage: setup
	@$(BIN)/python tools/measure_coverage.py $(ARGS)

test-slow: setup
	@$(BIN)/python -m pytest -q -m slow $(ARGS)

check: lint types imports docs-check

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	@$(BIN)/mypy --no-error-summary p2pnode && echo "types: ok"

imports: setup
	@$(BIN)/lint-imports --no-cache

docs: setup
	@$(BIN)/python tools/generate_docs.py

docs-check: setup
	@$(BIN)/python tools/generate_docs.py --check

fmt: setup
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

bench: setup
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[bench]"
	@for b in transport record planner api_streams compute survival meshes; do \
		echo "== bench/$$b.py"; $(BIN)/python bench/$$b.py || exit 1; done

interop: setup
	@$(BIN)/python tests/interop/run.py

# Ten thousand requests made up from the OpenAPI document: never a 500.
fuzz-api: setup
	@$(BIN)/python tests/interop/run.py --only schemathesis

clean:
	rm -rf .venv .demo .interop .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist *.egg-info p2pnode/compute/_watch.*.so
