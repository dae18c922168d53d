# Two commands set up everything: `make demo` and `make test`. Needs python3 (3.10-3.13), venv, make and a compiler.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= cpu,dev
BIN := $(VENV)/bin

export TF_CPP_MIN_LOG_LEVEL ?= 2
export OMP_WAIT_POLICY ?= PASSIVE
# BLAS's threads wait by spinning: with a test process on every core they made some tests five times slower.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo test lint bench install clean test-image

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/python -m scripts.demo $(if $(FILE),--file $(FILE))

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python scripts/bench.py $(BENCH)

test-image:
	docker/test_image.sh

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output
