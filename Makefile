# make run     sets up and serves on http://127.0.0.1:3000 in development mode
# make test    sets up and runs the whole suite
.DEFAULT_GOAL := help
.PHONY: help run test lint audit sbom format generate bench chaos docs lock clean

PYTHON ?= python3
BIN := .venv/bin

help: ## what there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

run: .venv/runtime node_modules/.stamp ## serve in development mode on http://127.0.0.1:3000
	$(BIN)/python -m gateway serve --dev

test: .venv/development node_modules/.stamp ## run the whole suite; again on the stock engine, and without what is compiled, all that they are part of
	$(BIN)/python -m pytest $(ARGS)
	GATEWAY_ENGINE=stock $(BIN)/python -m pytest tests/integration tests/js tests/browser tests/chaos/test_faults.py $(ARGS)
	GATEWAY_COMPILE=never $(BIN)/python -m pytest tests/test_*.py $(addprefix tests/integration/test_,engine.py idle.py sessions.py socketio.py websocket.py) $(ARGS)

lint: .venv/development ## check style, types and, where the database can be asked, what is locked
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/audit.py --if-reachable

audit: .venv/development ## look up known vulnerabilities of what is locked; fails where nobody can be asked
	$(BIN)/python tools/audit.py

sbom: .venv/development ## write dist/sbom.json: what the gateway is made of, as CycloneDX
	$(BIN)/python tools/sbom.py dist/sbom.json

format: .venv/development ## put the code in its one form
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

generate: .venv/runtime ## write anew what is made from the types of the wire
	$(BIN)/python -m gateway schema types > static/presence-events.d.ts
	$(BIN)/python -m gateway schema asyncapi > static/asyncapi.json

bench: .venv-bench/runtime benchmarks/node/node_modules/.stamp ## measure against Node's socket.io and stock python-socketio (ARGS=--quick for a look)
	.venv-bench/bin/python -m benchmarks $(ARGS)

chaos: .venv/development node_modules/.stamp ## break everything at random for an hour (ARGS="--seconds 60 --seed 1")
	$(BIN)/python -m tests.chaos $(ARGS)

docs: .venv/development ## build the documentation's site into build/site
	$(BIN)/python docs/site.py build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html build/docs build/site

# Names, versions and hashes for every platform; no addresses.
UV_COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url \
	--no-annotate --no-header --quiet $(UPGRADE)

lock: .venv/development ## write the lock files anew (UPGRADE=--upgrade for newer versions)
	$(UV_COMPILE) --output-file requirements.lock
	$(UV_COMPILE) --group dev --all-extras --output-file requirements-dev.lock
	$(subst compile pyproject.toml,compile --group build,$(UV_COMPILE)) --output-file requirements-build.lock
	npm install --package-lock-only --omit-lockfile-registry-resolved
	npm install --prefix benchmarks/node --package-lock-only --omit-lockfile-registry-resolved

# Compiled as they are installed: see hatch_build.py.
COMPILED := $(shell sed -n 's/^    "\(gateway.*\.\(py\|c\)\)",$$/\1/p' pyproject.toml)

%/runtime: requirements.lock pyproject.toml hatch_build.py $(COMPILED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $*/bin/python || $(PYTHON) -m venv $*
	@echo "installing; the first time takes a minute or two"
	$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Node comes as an optimised build. So does the system's Python; what pyenv builds, for one, is no such thing by itself.
SYSTEM := /usr/bin/python3
USABLE := import ensurepip, os, sys, sysconfig; \
	sys.exit(sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
.venv-bench/runtime: PYTHON := $(shell $(SYSTEM) -c '$(USABLE)' 2>/dev/null && echo $(SYSTEM) || echo $(PYTHON))

.venv/development: requirements-dev.lock .venv/runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

# The gateway runs without Node; the test page then takes the client from its CDN.
node_modules/.stamp: package-lock.json
	@if command -v npm >/dev/null; then \
		npm ci --no-audit --no-fund --loglevel=error && touch $@; \
	else \
		echo "npm is not installed: the test page will load socket.io-client from its CDN"; \
	fi

benchmarks/node/node_modules/.stamp: benchmarks/node/package-lock.json
	npm ci --prefix benchmarks/node --no-audit --no-fund --loglevel=error
	touch $@

clean: ## remove what make has set up
	rm -rf .venv .venv-bench build node_modules benchmarks/node/node_modules
