# make demo | test | test-hardened | test-next | test-pythons | bench | chaos | soak | lint | clean. What is missing is
# installed first, and named.
#
# On Debian, system packages come from apt-get, as root or with sudo. Elsewhere (NixOS, macOS) nothing is installed
# beside the virtual environment: `nix develop` provides the components.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# The Python of the virtual environment; empty: the first on PATH that is new enough.
PYTHON ?=
PYTEST_ARGS ?=
# For 2 cores: a worker waits for nearly half of its time, and each has a broker of its own.
WORKERS ?= 3
RUFF ?= $(BIN)/ruff

.PHONY: demo test test-hardened test-next test-pythons bench chaos soak lint install system clean

demo: install
	$(BIN)/ofborg-async demo

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope $(PYTEST_ARGS)

# The acceptance tests with daemons that systemd starts under deploy/'s unit: where nix builds itself, then with the
# drop-in for hosts where nix-daemon does. As root; nothing of it stays on the machine.
test-hardened: install
	bash .ci/install-system systemd
	$(BIN)/python tests/hardened.py -n $(WORKERS) --dist loadscope tests/acceptance $(PYTEST_ARGS)
	$(BIN)/python tests/hardened.py --nix-daemon -n $(WORKERS) --dist loadscope tests/acceptance $(PYTEST_ARGS)

# The tests with the parts of the next Debian release: as root, in a root of its own that is kept in .next.
test-next:
	bash .ci/run-next -n $(WORKERS) --dist loadscope $(PYTEST_ARGS)

# The tests with every supported Python that is on PATH, each in a virtual environment of its own in .venvs.
test-pythons:
	bash .ci/run-pythons -n $(WORKERS) --dist loadscope $(PYTEST_ARGS)

lint: install
	$(RUFF) check .
	$(RUFF) format --check .
	$(BIN)/mypy
	printf '%s\n' tests/conftest.py tests/*/conftest.py | MYPYPATH=tests xargs -n 1 $(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# ONLY= picks figures (ONLY=log,small), AGAINST= compares with another builder's program in the same run.
bench: install
	$(BIN)/python -m ofborg_async.lab.bench $(if $(AGAINST),--against $(AGAINST)) $(if $(ONLY),--only "$(ONLY)")

# SEED= repeats a schedule, MINUTES= says how long, AGAINST= puts another builder's program in our place.
chaos: install
	$(BIN)/python -m ofborg_async.lab.chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(AGAINST),--against $(AGAINST))

# MINUTES= says how long (40).
soak: install
	$(BIN)/python -m ofborg_async.lab.soak $(if $(MINUTES),--minutes $(MINUTES))

install: system $(VENV)/.installed

system:
	@bash .ci/install-system

$(VENV)/.installed: pyproject.toml .ci/requirements.lock .ci/install-venv
	@bash .ci/install-venv $(VENV) $(PYTHON)
	@touch $@

clean:
	rm -rf --one-file-system .next
	rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache benchmarks benchmarks.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
