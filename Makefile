# `make demo` and `make test` need Python 3.11 or newer, git and make; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SKYPILOT := $(VENV)/skypilot/.ready
TORCHAO := $(VENV)/torchao/.ready

.PHONY: demo test soak mutants bench quality style docs clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=24"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,docs]"
	touch $(READY)

# Beside the other packages, with which it does not go; tests/skypilot.txt says more.
$(SKYPILOT): $(READY) tests/skypilot.txt
	rm -rf $(VENV)/skypilot
	$(BIN)/python -m pip install -q --no-deps --no-compile --target $(VENV)/skypilot \
	  -r tests/skypilot.txt
	touch $(SKYPILOT)

# Beside the other packages: diffusers imports it wherever it finds it, in each process that starts.
$(TORCHAO): $(READY) constraints.txt
	rm -rf $(VENV)/torchao
	$(BIN)/python -m pip install -q --no-deps --no-compile --target $(VENV)/torchao \
	  -c constraints.txt torchao
	touch $(TORCHAO)

demo: $(READY)            ## edit a few drawn clips with the embedded checkpoint
	$(BIN)/retake demo --output demo

test: $(READY) $(SKYPILOT) $(TORCHAO)  ## the quick tests, with coverage of all processes
	$(BIN)/python -m tests.run

soak: $(READY)            ## the long tests, then half an hour of faults; see tests/faults/soak.py
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m tests.faults.soak

mutants: $(READY)         ## how many small faults the quick tests notice; a table beside itself
	$(BIN)/python -m tests.mutants

bench: $(READY) $(TORCHAO)  ## what measures; writes its tables beside itself
	$(BIN)/python -m tests.benchmarks

quality: $(READY)         ## lint, format and types, as CI checks them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(READY)           ## fix what can be fixed without a decision
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)            ## the documentation, in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo build .coverage* htmlcov
