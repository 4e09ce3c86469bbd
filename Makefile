# Every target makes its own virtual environment; only Python >= 3.11 and a C compiler have to be there.
PYTHON ?= python3
VENV ?= .venv
TORCH_VENV ?= .venv-torch
ONNX_VENV ?= .venv-onnx
# Each test process compiles for itself: two use both cores of a small machine.
TEST_PROCESSES ?= 2
# A file a process, in the order of tests/conftest.py: pytest-xdist's own would begin the longest tests last.
SIDE_BY_SIDE = -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-boir embedded lint format test test-fast test-torch test-onnx test-rounding clean

demo: $(VENV)/.ready
	$(VENV)/bin/python -m posebh_jax.main --config=configs/mdt.py:demo --workdir=workdir/demo

demo-boir: $(VENV)/.ready
	$(VENV)/bin/python -m boir_jax.main --config=configs/boir.py:demo --workdir=workdir/demo_boir

# The two models that the package carries, made anew: an hour on two cores. Commit what changes.
embedded: demo-boir
	$(VENV)/bin/python -m posebh_jax.main --config=configs/embedded.py --workdir=workdir/embedded
	$(VENV)/bin/python -m scripts.embed_models workdir/embedded workdir/demo_boir

test: $(VENV)/.ready
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -rs

# Style, mistakes that can be seen without running, and types.
lint: $(VENV)/.ready-lint
	$(VENV)/bin/python -m ruff format --check
	$(VENV)/bin/python -m ruff check
	$(VENV)/bin/python -m mypy

format: $(VENV)/.ready-lint
	$(VENV)/bin/python -m ruff check --fix
	$(VENV)/bin/python -m ruff format

# Between edits: everything that compiles no whole network.
test-fast: $(VENV)/.ready
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

# Which tolerances are too narrow for what rounding alone does on other processors.
test-rounding: $(VENV)/.ready
	$(VENV)/bin/python -m tests.rounding

# The tests that need PyTorch (reading .pth files) and transformers (peers of the converters).
test-torch: $(TORCH_VENV)/.ready
	$(TORCH_VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m torch

# The tests that need jax2onnx, whose pins are not those of constraints.txt.
test-onnx: $(ONNX_VENV)/.ready
	$(ONNX_VENV)/bin/python -m pytest -m onnx

$(VENV)/.ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable .[test]
	touch $@

$(VENV)/.ready-lint: $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable .[lint]
	touch $@

$(TORCH_VENV)/.ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(TORCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable .[test,test-torch]
	touch $@

# Orbax is left to jax2onnx, which wants an older one.
$(ONNX_VENV)/.ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(ONNX_VENV)
	$(ONNX_VENV)/bin/python -m pip install --quiet --upgrade pip
	grep -v orbax constraints.txt > $(ONNX_VENV)/constraints.txt
	$(ONNX_VENV)/bin/python -m pip install --quiet --constraint $(ONNX_VENV)/constraints.txt --editable .[test,onnx]
	touch $@

clean:
	rm -rf $(VENV) $(TORCH_VENV) $(ONNX_VENV) workdir .cache
