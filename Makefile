# make demo    go the whole road on handwritten digits
# make test    run the tests
# make chaos   disturb some hundred runs, and compare with undisturbed ones
# make fuzz    read 10,000 hostile files
# make mutate  change the product a little, and see whether its tests notice
# make kit     rehearse the GPU acceptance kit on this machine's CPU, with tiny networks
# make protocol  play 100,000 schedules of the commit protocol (minutes)
# make docs    build the documentation into build/site
# make lint    check style and types
# make clean   remove .venv, caches and builds (never data or runs)
#
# Each makes .venv first if it is missing or older than the files that say what belongs in it.

PYTHON ?= python3
CORES := $(shell getconf _NPROCESSORS_ONLN)
# One more than there are cores, for a test that waits for Ray leaves its own idle; each takes 1.3 GB.
WORKERS ?= $(shell echo $$(($(CORES) < 6 ? $(CORES) + 1 : 6)))
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Errors only; no bytecode for the thousands of modules that are never imported.
PIP_FLAGS := -qq --disable-pip-version-check --no-compile

# Tests start processes by the hundred; in a shell that forbids bytecode each would compile torch.
export PYTHONDONTWRITEBYTECODE =

.PHONY: docs help demo test chaos fuzz mutate kit protocol lint clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(STAMP)
	@$(VENV)/bin/dreamshard demo

# One thread each, or they would wait for one another. Tests of a folder that start Ray share a
# process (--dist loadgroup).
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadgroup $(ARGS)

# SCHEDULES=N plays the seeds 0 .. N-1.
chaos: $(STAMP)
	@OMP_NUM_THREADS=1 DREAMSHARD_CHAOS=$(or $(SCHEDULES),240) $(PY) -m pytest -q tests/chaos $(ARGS)

# CASES=N plays N of them, SEED=K those from K on; KIND=teacher only hostile teachers.
fuzz: $(STAMP)
	@OMP_NUM_THREADS=1 $(PY) -m tests.fuzz.play --cases $(or $(CASES),10000) --seed $(or $(SEED),0) \
	  $(if $(KIND),--kind $(KIND))
	@OMP_NUM_THREADS=1 DREAMSHARD_FUZZ=$(or $(CASES),10000) $(PY) -m pytest -q tests/fuzz/test_reader.py \
	  --hypothesis-seed=$(or $(SEED),0) $(ARGS)

mutate: $(STAMP)
	@$(PY) -c 'import cosmic_ray' 2>/dev/null || \
	  $(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[mutate]"
	@OMP_NUM_THREADS=1 $(PY) benchmarks/mutate.py $(ARGS)

kit: $(STAMP)
	@OMP_NUM_THREADS=1 $(PY) benchmarks/gpu.py --device cpu --tiny --out build/kit \
	  --test_seconds 600 --part_seconds 300 $(ARGS)

# SCHEDULES=N plays N of them, SEED=K draws others.
protocol: $(STAMP)
	@OMP_NUM_THREADS=1 DREAMSHARD_PROTOCOL=$(or $(SCHEDULES),100000) DREAMSHARD_PROTOCOL_SEED=$(or $(SEED),0) \
	  $(PY) -m pytest -q -n $(WORKERS) tests/protocol $(ARGS)

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build -q -f docs/site/mkdocs.yml
	@echo "open build/site/index.html (search: $(PY) -m http.server -d build/site)"

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pyright

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "dreamshard needs Python 3.11 or newer, and $(PYTHON) is not." >&2; \
	  echo "Name another one: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(PY) || { echo "Making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing dreamshard and what it needs into $(VENV) (the first time takes minutes) ..."
	@$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[all,dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
