# Needs make and Python 3.11 or newer, nothing else; uses uv where it is installed. `make help` lists what there is.
#   make demo DEMO_ARGS="--no-play --out runs/demo"      make test TEST_ARGS="-k store -x"
#   EXTRAS=cuda (or tpu, coinrun, ...) installs optional parts as well;  PYTHON=python3.12 chooses the interpreter.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs bench slow soak mutants lock clean

VENV ?= .venv
EXTRAS ?=
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
MUTANT_ARGS ?=

# One stamp file for each set of extras, so that set-up runs once.
READY := $(VENV)/.ready$(EXTRAS:%=-%)
READY_DEV := $(VENV)/.ready-dev$(EXTRAS:%=-%)

help:            ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 16

setup: $(READY)  ## install Reverie into .venv (the others do it when needed)

demo: $(READY)   ## train a small world before your eyes, then play in it
	$(VENV)/bin/reverie demo $(DEMO_ARGS)

test: $(READY_DEV)  ## all tests but the slow ones
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

slow: $(READY_DEV)  ## the slow tests, which take as long as all others (tests/slow.txt)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow $(TEST_ARGS)

lint: $(READY_DEV)  ## style, types and floors
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/python -m pytest tests/test_floors.py

docs: $(READY_DEV)  ## the documentation as a site, in .cache/site
	$(VENV)/bin/mkdocs build --quiet

bench: $(READY)  ## speed: one JSON line a measurement
	$(VENV)/bin/python -m benchmarks $(BENCH_ARGS)

soak: $(READY_DEV)  ## the tests that take many minutes
	$(VENV)/bin/python -m pytest -m soak -o faulthandler_timeout=3600 $(TEST_ARGS)

mutants: $(READY_DEV)  ## change one line at a time; the test named for it must fail
	$(VENV)/bin/python tests/mutants.py $(MUTANT_ARGS)

lock:            ## write requirements.lock anew (needs uv)
	uv lock --quiet --upgrade
	{ echo "# Exact versions of everything, for every Python and platform; a constraints file for uv and pip. Made by 'make lock'."; \
	  uv export --quiet --frozen --no-hashes --no-emit-project --no-annotate --no-header \
	    --extra dev --extra coinrun --extra gym --extra tensorboard; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:           ## remove .venv and caches, never runs/
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist *.egg-info
	find reverie tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml requirements.lock .ci/setup
	@sh .ci/setup $(VENV) "$(EXTRAS)"
	@touch $@

$(READY_DEV): pyproject.toml requirements.lock .ci/setup
	@sh .ci/setup $(VENV) "dev$(EXTRAS:%=,%)"
	@touch $@ $(READY)
