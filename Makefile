# The few commands a person types. Everything is installed into .venv; nothing else of the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# More than the cores: a test waits now and then, for a process that it stops or for a file.
WORKERS ?= 3
# The tests start some hundred processes of Python, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test coverage wild gpu fuzz lint bench pages site clean

demo: $(VENV)/.demo
	$(BIN)/caffetools demo

test: $(VENV)/.test
	# One thread a worker: with threads of their own they would wait for each other.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# Which lines the tests run, with the processes that they start: a table of the files that are not wholly covered, and the total.
coverage: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term:skip-covered

# Sweeps over published prototxts and models, which are not ours to copy: CAFFETOOLS_WILD is the folder that holds them.
wild: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m wild

# What needs a CUDA device: the golden data once more there, recorded passes, lower precision.
gpu: $(VENV)/.test
	$(BIN)/python -m pytest -m gpu tests/gpu

fuzz: $(VENV)/.test
	CAFFETOOLS_FUZZ=6000 $(BIN)/python -m pytest tests/proto/test_fuzz.py -n 2 -rP

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python benchmarks/train.py

# The pages that are made from the code, and the documentation's site in build/site.
pages: $(VENV)/.test
	for script in docs/make_*.py; do case $$script in *visualize.py|*terminal.py) ;; *) $(BIN)/python $$script || exit 1;; esac; done

site: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "the site is in build/site"

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

SOURCES := pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard native/*)
# pip keeps to itself what a build says, so whether there are native kernels is said here.
STATUS := @$(BIN)/python -c "from caffetools.layers import native; print(native.status())"

$(VENV)/.demo: $(VENV)/bin/python $(SOURCES)
	$(PIP) install -q -c constraints.txt -e '.[demo]'
	$(STATUS)
	@touch $@

$(VENV)/.test: $(VENV)/bin/python $(SOURCES)
	$(PIP) install -q -c constraints.txt -e '.[test]'
	$(STATUS)
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.test
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	@touch $@
