# `make demo` and `make test` need Python 3.11 with its venv module, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
EMBEDDED := $(VENV)/installed-embedding
# A path that type checkers follow, in place of an import hook that they do not.
EDITABLE := --config-settings editable_mode=compat --editable
INSTALL := $(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt $(EDITABLE)

# Images of machines often set it; every process would then compile anew all that it imports, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-embedding test-long lint clean

# The trained shapes pair, built and run on the CPU: demo/side-by-side.mp4.
demo: $(INSTALLED)
	$(BIN)/python -m benchmarks.demo --out demo

# One thread for each process: most of what the tests wait for is a single thread, or another process.
# Without Chromium, the tests that look at fb-compare's page are skipped, and say so.
# `make test EMBEDDING=1` runs those of test-embedding as well, and builds once what both look at.
test: $(INSTALLED) lint $(if $(EMBEDDING),$(EMBEDDED))
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(if $(EMBEDDING),-m 'not long') \
		--numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 60

# Needs cmake, g++, nlohmann-json3-dev, libssl-dev and libpython3.11 from the distribution beside, and fails without.
test-embedding: $(EMBEDDED)
	FLOWBLENDING_REQUIRE_TOOLS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'embedding and not long' --numprocesses 2 --dist loadfile

# Minutes of builds and benchmark programs, and variants of graphs, C++, Triton and Ray: every night and before a release.
test-long: $(EMBEDDED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long --numprocesses 2 --dist load

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# PyPI's torch for Linux is a CUDA build of 2.7 GB with what it pulls in. README.md says how to take the CPU build: pip is
# told where it lies, and fetches it. uv installs, in a fifth of pip's time.
# TensorRT-RTX is a compiler that works without a GPU, so the tests build real plans with it everywhere.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a download of 3.1 GB from PyPI, or 0.5 GB with the CPU build of torch (see README.md)"
	$(BIN)/python -m pip install --constraint constraints.txt uv
	rm -rf $(VENV)/wheels
	$(BIN)/python -m pip download --constraint constraints.txt --no-deps --dest $(VENV)/wheels torch
	$(INSTALL) '.[build,calibrate,cpu,gguf,video,serve,tensorrt-rtx,dev]' $(VENV)/wheels/torch-*.whl
	rm -r $(VENV)/wheels
	touch $@

$(EMBEDDED): $(INSTALLED)
	$(INSTALL) '.[ray,ray-serve,client]'
	touch $@

clean:
	rm -rf $(VENV) demo
