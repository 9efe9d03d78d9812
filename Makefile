# Two commands for a newcomer with Python 3.11 or newer and make: `make demo` and `make test`.

VENV ?= .venv
# The first interpreter that is new enough; override with PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
DEMO ?= runs/demo
# A photo of yours whose hands `make demo PHOTO=me.jpg` reconstructs as well.
PHOTO ?=
# Tests run side by side on this many processes.
JOBS ?= 2

# Damaged files that `make fuzz` gives to each reader.
INPUTS ?= 300

.PHONY: help demo test slow-tests fuzz lint wheel clean

help:
	@echo "make demo        reconstruct a hand, then train a small TokenHand on built-in data (about 13 minutes on 2 cores)"
	@echo "make test        run the test suite"
	@echo "make slow-tests  run the tests marked slow as well"
	@echo "make fuzz        give damaged files to every reader, INPUTS=300 each"
	@echo "make lint        formatting, lint, types, import arrows"
	@echo "make wheel       build the wheel and use it in an empty directory"

$(VENV)/core: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with the venv module was found. Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

demo: $(VENV)/core
	$(BIN)/python -m handjax.predict handjax/assets/example.jpg --output $(DEMO)/hands
	@test -z "$(PHOTO)" || $(BIN)/python -m handjax.predict "$(PHOTO)" --output $(DEMO)/hands
	$(BIN)/python -m handjax.train --config configs/tokenhand.py:demo --workdir $(DEMO)
	$(BIN)/python -m handjax.evaluate --workdir $(DEMO)
	$(BIN)/python scripts/demo_photo.py --workdir $(DEMO) --output $(DEMO)/photo
	$(BIN)/python -m handjax.predict $(DEMO)/photo/photo.jpg --boxes $(DEMO)/photo/boxes.json --workdir $(DEMO) --output $(DEMO)/photo
	@echo "Pictures: $(DEMO)/hands (the model that comes with handjax), $(DEMO)/images (training), $(DEMO)/codebook (codes), $(DEMO)/photo (a reconstructed photo, GLB and OBJ)."

test: $(VENV)/dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

slow-tests: $(VENV)/dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "slow or not slow"

fuzz: $(VENV)/dev
	$(BIN)/python tests/fuzz/run.py --inputs $(INPUTS)

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

wheel: $(VENV)/core
	scripts/check_wheel.sh $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info
