# What a person types. Everything here may be run again and again.
.PHONY: demo setup test lint bench stack docs screenshots test-vms test-requests test-compose test-hosts test-kernels clean

PYTHON = .venv/bin/python

demo: ## install what is missing, start Davit, push an app, print its URL
	@MAKE_TARGET=demo scripts/demo

setup: ## only install what is missing
	@MAKE_TARGET=setup scripts/setup run test vm

test: ## install what is missing and run every test (but the slow proofs)
	@MAKE_TARGET=test scripts/setup run test vm
	@scripts/test $(TESTS)

lint: ## style and types
	@MAKE_TARGET=lint scripts/setup run test
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: ## measurements, side by side with what a user would pick instead
	@MAKE_TARGET=bench scripts/setup run bench vm
	$(PYTHON) -m bench

stack: ## build the stack that apps run on anew
	@MAKE_TARGET=stack scripts/setup run
	bin/davit stack:build

screenshots: ## photograph every page of the dashboard into docs/screenshots; look at them
	@MAKE_TARGET=screenshots scripts/setup run test
	$(PYTHON) -m tests.dashboard.photos

docs: ## write the generated parts of docs/
	$(PYTHON) -m scripts.reference
	$(PYTHON) -m api.reference
	$(PYTHON) -m cli.reference
	$(PYTHON) -m tests.runtime.contract_table

test-vms: ## the slow proof that virtual machines keep the whole contract of dynos, a guest for each test
	@MAKE_TARGET=test-vms scripts/setup run test vm
	DAVIT_STACKS=$${DAVIT_STACKS:-/var/cache/davit/stacks} $(PYTHON) -m pytest -m slow tests/runtime

test-requests: ## a long run of drawn requests to every endpoint of the API, on SQLite and PostgreSQL; DAVIT_TEST_REQUESTS=100 to each
	@MAKE_TARGET=test-requests scripts/setup run test
	$(PYTHON) -m pytest -m slow tests/api

test-compose: ## the slow proof that docker-compose.yml works (its own Docker daemon, in a network namespace)
	@MAKE_TARGET=test-compose scripts/setup run test compose
	$(PYTHON) -m pytest -m slow tests/compose

test-hosts: ## the slow proof that blank Debian 12 and 13 and Ubuntu 24.04 become Davit hosts by cloud-init (in QEMU; a quarter of an hour each where nothing else runs, and much longer beside other work)
	@MAKE_TARGET=test-hosts scripts/setup run test hosts
	$(PYTHON) -m pytest -m slow -s tests/hosts

test-kernels: ## the slow proof that dynos and builds work on Debian 12's and 13's kernels (in QEMU; about an hour each)
	@MAKE_TARGET=test-kernels scripts/setup run test vm kernels
	$(PYTHON) -m pytest -m slow -s tests/kernels

clean: ## remove caches of the tools
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
