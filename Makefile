# Every target sets itself up in .venv: a fresh clone needs Python 3.11+, a C++ compiler and make, nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
# Built in this environment, so that a second build compiles only what changed.
BUILD   := scikit-build-core pybind11 cmake ninja
INSTALL := $(PIP) install -c constraints.txt --no-build-isolation
# Most of what is fetched and unpacked, a minute's work, and not needed for compiling: both are done at once.
LARGE   := torch scipy matplotlib scikit-image

# Stamps: what is installed, so that a second `make` starts at once. Sources are rebuilt when they change.
SOURCES := pyproject.toml CMakeLists.txt constraints.txt \
           $(shell find csrc kernels pyrecon -type f \( -name '*.py' -o -name '*.pyi' -o -name '*.cpp' -o -name '*.hpp' \
             -o -name '*.cu' -o -name '*.cuh' -o -name '*.safetensors' \) -not -path 'pyrecon/kernels/*' 2>/dev/null)

.PHONY: help kernels demo test slow bench docs lint types sanitize triton cuda fresh clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# An environment with the tests has the demo's packages too, and kernels for every instruction set.
demo: $(if $(wildcard $(VENV)/.test),$(VENV)/.test,$(VENV)/.demo) ## Reconstruct an MPI and an MRI scan; figure and summary in demo_out/
	$(BIN)/pyrecon demo --output demo_out

test: $(VENV)/.test ## The test suite (CPU), long tests left out
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not slow" --junitxml=build/tests.xml

slow: $(VENV)/.test ## The long tests
	$(BIN)/pytest -q -n 2 --dist worksteal -m slow --junitxml=build/tests_slow.xml

bench: $(VENV)/.test ## Measure the kernels; writes benchmarks/results/ and docs/benchmarks.md
	$(BIN)/pytest benchmarks -q -p no:xdist --benchmark-enable --benchmark-json=build/benchmark.json
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/render.py build/benchmark.json

docs: $(VENV)/.dev ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/pytest -q tests/built_docs.py

lint: $(VENV)/.dev ## ruff and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.hpp' 'csrc/*.cu' 'csrc/*.cuh')

types: $(VENV)/.dev ## mypy --strict on the installed package
	cd build && ../$(BIN)/python -m mypy --config-file ../pyproject.toml -p pyrecon

triton: $(VENV)/.test ## Triton kernels: the interpreter on tiny cases, and ahead-of-time for sm_80/90/100
	TRITON_INTERPRET=1 $(BIN)/pytest -q -n 2 --dist worksteal tests/triton_interpreter.py
	$(BIN)/pytest -q tests/triton_ahead_of_time.py

cuda: $(VENV)/.test ## Compile the CUDA module (needs nvcc, no GPU) and import it
	$(BIN)/cmake -G Ninja -S . -B build/cuda -DPYRECON_CUDA=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	    -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DSKBUILD_PROJECT_VERSION=0 >build/cuda.log
	$(BIN)/cmake --build build/cuda --target _cuda
	cd build/cuda && ../../$(BIN)/python -c "import torch, _cuda; print('built and imported:', _cuda.__doc__)"

sanitize: $(VENV)/.test ## The kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	sh tests/sanitize.sh $(BIN)/python

$(VENV)/.tools:
	$(PYTHON) -c 'import sys; sys.exit("pyrecon needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt $(BUILD)
	@touch $@

$(VENV)/.large: $(VENV)/.tools
	$(PIP) install -c constraints.txt $(LARGE)
	@touch $@

kernels: $(VENV)/.tools # compiled in build/, where the installation finds them done
	$(PIP) wheel --no-deps --no-build-isolation -w build/wheel .

# A first image needs the kernels of this machine only, a third of the compiling; the tests run them all.
$(VENV)/.demo: export PYRECON_LEVELS := NATIVE
$(VENV)/.demo: $(VENV)/.tools $(SOURCES)
	$(MAKE) -j2 $(VENV)/.large kernels
	$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.tools $(SOURCES)
	$(MAKE) -j2 $(VENV)/.large kernels
	$(INSTALL) '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(INSTALL) '.[dev]'
	@touch $@

clean: ## Remove everything the targets made
	rm -rf $(VENV) build demo_out docs/_build docs/gallery
