# One command per chore; `make` lists them. Another interpreter: make test PYTHON=python3.12
PYTHON ?= .venv/bin/python
VERSION ?= Unreleased
LOWEST_TESTS = tests/actors tests/generation/test_generate.py tests/work_queue tests/index tests/query tests/export \
	tests/cluster/test_connection.py tests/evaluation tests/gallery

.PHONY: help install test slow lowest lint docs reference illustrations wheel release-notes ci

help: ## list the commands
	@grep -E '^[a-z-]+: ## ' $(MAKEFILE_LIST) | sed 's/: ## /\t/' | expand -t 16

install: ## make .venv with everything that development needs
	python3 -m venv .venv
	.venv/bin/pip install -q -e '.[dev]'

test: ## the default tests, about six minutes on two cores
	$(PYTHON) -m pytest

slow: ## the slow tests: kills, full disks, clusters, submitted jobs
	$(PYTHON) -m pytest -m slow --dist worksteal

lowest: ## the main tests with the lowest versions that are allowed, in .venv-lowest
	python3 -m venv .venv-lowest
	.venv-lowest/bin/pip install -q -c .ci/constraints-lowest.txt -e '.[test]'
	.venv-lowest/bin/python -m pytest $(LOWEST_TESTS)

lint: ## ruff and pyright
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright --pythonpath $(PYTHON)

docs: ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

reference: ## regenerate help texts and columns in docs/
	$(PYTHON) -m tests.docs.test_reference

illustrations: ## the illustrations of README and docs, in .github/
	$(PYTHON) -m jobs.illustrations.make

wheel: ## the wheel, in dist/
	$(PYTHON) -m pip wheel -q --no-deps -w dist .

release-notes: ## the changelog's section of VERSION
	@awk -v version='[$(VERSION)]' '/^## \[/ {shown = index($$0, version)} shown' CHANGELOG.md

ci: ## everything that has to pass before a change lands
	bash .ci/run
