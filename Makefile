# Needs Python >= 3.11 and make; everything else is installed into .venv.
#   make demo      serve a ready model; then train, attack, export and serve one of your own in minutes
#   make test      the tests
#   make coverage  the tests, and the lines that none of them runs
#   make check     lint, formatting, types
#   make docs      the documentation as a site, strictly
#   make clean     remove what the others made (the environment too)

# 3.11 first: it is what the tests run on. A name on the PATH may be a shim that starts nothing, or lack venv: so each is tried.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
  $$name -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
# One thread for each of pytest's processes: two that share the cores by threads wait for each other. Bytecode is kept, whatever the
# environment says: every process, and every run, would compile all modules and rewrite all tests anew.
TESTS := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest

.PHONY: demo test test-slow coverage check docs clean

demo: .venv/ready
	$(BIN)/python examples/demo.py

test: .venv/ready
	$(TESTS) -n auto --dist loadfile

test-slow: .venv/ready
	$(TESTS) -m slow

coverage: .venv/ready
	$(TESTS) -n auto --dist loadfile --cov

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "look at: build/site/index.html"

# Four are peers that the tests compare with; what they ask for does not fit every build of torch. Libraries of whole models lie apart,
# in .venv/peers: a torchvision for CUDA beside a torch for CPUs would break what imports it.
.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with venv on the PATH: install one, or name it: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "torch>=2.6,<2.14"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "torchattacks==3.5.1" "cospgd==0.1.3" "adv-lib==0.2.8" "imagecorruptions-imaug==1.1.5"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv/peers "torchvision==0.28.0" "timm==1.0.31" \
	  "segmentation-models-pytorch==0.6.0"
	@touch $@

clean:
	rm -rf .venv .coverage demo build *.egg-info .mypy_cache .pytest_cache .hypothesis
	find . \( -name __pycache__ -o -name .ruff_cache \) -prune -exec rm -rf {} +
