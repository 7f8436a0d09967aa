# Every target sets up what it needs by itself and starts at once when that is there.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: demo app test lint format clean

demo: $(READY)
	$(BIN)/zfkeras demo --output demo

app: $(READY)
	$(BIN)/streamlit run app/main.py

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The marker is written last, so an interrupted installation is made again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and 'zfkeras needs Python 3.11 to 3.13. Say make PYTHON=python3.11, for example.')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache
