# Every chore, one command each; works with GNU make 3.81. `make` alone lists them.
#
# The first of them makes a virtual environment: .venv with the first Python of 3.11 or later that is found,
# or .venv-3.12 and so on with the one that PYTHON names.

.DEFAULT_GOAL := help
.PHONY: help demo test test-system test-faults faults guarantees check format bench dev

ifdef PYTHON
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
else
VENV := .venv
endif
BIN := $(VENV)/bin
# Newer than setup.cfg if what that asks for is installed.
READY := $(VENV)/.ready
# More than there are cores, since most tests wait for other processes; each has a server of its own.
WORKERS ?= 4
ARGS ?=

help:
	@echo "make demo         see it work: real flights, an outage, kill -9, every count checked"
	@echo "make test         unit, integration and fault tests"
	@echo "make test-faults  of these only the fault tests"
	@echo "make test-system  build the wheel, and run tests and demo against it; Prometheus on dashboard and alerts"
	@echo "make faults       20 times every way to fail, under load: writes docs/faults.md; half an hour"
	@echo "make guarantees   what each guarantee costs: writes its table in docs/guarantees.md; 10 minutes"
	@echo "make check        format, lint, types, direction of imports, packaging"
	@echo "make bench        measure against nats-py, FastStream and nats.c"
	@echo "make dev          only the environment, ready for an editor"
	@echo "make format       let ruff format and fix"
	@echo "PYTHON=python3.12 picks the Python, ARGS=... goes to the command"

$(READY): setup.cfg pyproject.toml
	@sh .ci/environment "$(PYTHON)" "$(VENV)"

demo: $(READY)
	@$(BIN)/understudy demo $(ARGS)

# The long ones come first, and who has nothing left takes over from others: else one worker has the last of
# them while the others wait.
test: $(READY)
	$(BIN)/pytest tests/faults tests/integration $(wildcard tests/contract) tests/unit -n $(WORKERS) --dist worksteal $(ARGS)

test-system: $(READY)
	@sh .ci/prometheus "$(VENV)"
	$(BIN)/pytest tests/system $(ARGS)

test-faults: $(READY)
	$(BIN)/pytest tests/faults -n $(WORKERS) --dist worksteal $(ARGS)

faults: $(READY)
	cd tests && ../$(BIN)/python -m support.fault_table --write ../docs/faults.md $(ARGS)

guarantees: $(READY)
	$(BIN)/python -m benchmarks --scenario guarantees --page docs/guarantees.md $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p understudy
	$(BIN)/mypy tests $(wildcard benchmarks)
	cd .namespace && ../$(BIN)/lint-imports --config ../.importlinter
	$(BIN)/pytest -q tests/unit/test_packaging.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

dev: $(READY)
	@echo "$(VENV) is ready; editors and mypy find the packages under .namespace"
