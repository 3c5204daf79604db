# Two commands need nothing but Python, make and the package registries: `make demo`, `make test`.
# PYTHON=python3.12 chooses the interpreter, ARGS="..." goes to the demo, pytest or the benchmarks.

PY := .venv/bin/python
ARGS ?=

# Where the environment forbids to keep bytecode, each of the hundreds of processes here would compile the package.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-job bench-observe recovery maintenance clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

demo: ## watch a cluster of workers share work by key, and prove it
	@PYTHON="$(PYTHON)" .ci/setup demo
	@$(PY) -m jobsync_celery demo $(ARGS)

test: ## run all tests
	@PYTHON="$(PYTHON)" .ci/setup dev rabbitmq
	@$(PY) -m pytest -q -n 3 --dist loadgroup $(ARGS)

check: ## lint, format, types and layers
	@PYTHON="$(PYTHON)" .ci/setup dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports

bench: ## measure coordinated against plain Celery
	@PYTHON="$(PYTHON)" .ci/setup dev rabbitmq
	@$(PY) benchmarks/throughput.py $(ARGS)

bench-job: ## measure what a Job's questions, claims, locks and joins cost
	@PYTHON="$(PYTHON)" .ci/setup dev
	@$(PY) benchmarks/job.py $(ARGS)

bench-observe: ## measure what mode="observe" costs
	@PYTHON="$(PYTHON)" .ci/setup dev rabbitmq
	@$(PY) benchmarks/observe.py $(ARGS)

recovery: ## measure how long work stands still when workers die, stop or join, or PostgreSQL is away
	@PYTHON="$(PYTHON)" .ci/setup dev rabbitmq
	@$(PY) benchmarks/recovery.py $(ARGS)

maintenance: ## measure what finished tasks cost on disk, and what it costs to delete them
	@PYTHON="$(PYTHON)" .ci/setup dev
	@$(PY) benchmarks/maintenance.py $(ARGS)

clean: ## remove the virtual environment and all caches
	rm -rf .venv build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
