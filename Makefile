# Everything from a fresh clone: `make demo` shows a trained world model, `make test` runs the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  ?= torch==2.13.0
EXTRAS ?= dev,sim,eval,web,env,lora,remote
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help setup demo play test gpu weights wheels soak mutants lint format clean

help:
	@echo "make demo    evaluate the shipped world model, train a toy one, write a report with videos (demo/report.html)"
	@echo "make play    drive a humanoid through the model's world, in the browser"
	@echo "make test    run the tests"
	@echo "make gpu     on a machine with an NVIDIA card: its tests and a table of speeds, in ten minutes (docs/gpu.md)"
	@echo "make weights record the simulated home, and train the tokenizer and the model of it (a day; goes on where it stopped)"
	@echo "make soak    the long tests: fifty kills of a run of two processes, each way"
	@echo "make mutants change the code in one place at a time, and see that a test notices"
	@echo "make lint    style and types"
	@echo "make setup   only install, into $(VENV)"

# PyTorch first. A plain install brings the CUDA build, several gigabytes; where there is no GPU the CPU build is
# taken from PyTorch's own index, unless pip is set up to find packages elsewhere (a mirror or a wheel folder).
TORCH_INDEX ?= $(shell test -e /dev/nvidia0 || pip config list 2>/dev/null | grep -qE 'index-url|find-links' || \
                 echo --index-url https://download.pytorch.org/whl/cpu)

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)" $(TORCH_INDEX)
	# the PyTorch that is there stays: pip takes another sooner than it looks through all versions of the rest
	$(BIN)/python -m pip freeze | grep '^torch==' > $(VENV)/torch.txt || true
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/torch.txt --editable ".[$(EXTRAS)]"
	touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/hwm demo --out demo

play: setup
	$(BIN)/hwm play

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Five minutes at most for the tests, and so many for the table, which is made whatever they say.
MINUTES ?= 4.5
# On a machine that reaches no network: `make gpu WHEELS=folder` takes the $(PYTHON) that has PyTorch for the card, lays
# the packages that it lacks beside it, out of wheels in that folder, and installs nothing.
GPU_PYTHON = $(if $(WHEELS),PYTHONPATH=$(CURDIR)/gpu/packages:$(CURDIR) $(PYTHON),$(BIN)/python)

gpu: $(if $(WHEELS),wheels,setup)
	@$(GPU_PYTHON) -c "import torch; torch.cuda.is_available() or exit(f'PyTorch {torch.__version__} finds no CUDA device')"
	timeout --signal INT 300 $(GPU_PYTHON) -m pytest -m gpu --durations 10 tests/gpu; tests=$$?; \
	$(GPU_PYTHON) benchmarks/gpu.py --device cuda --minutes $(MINUTES) --out gpu && exit $$tests

weights: setup
	$(MAKE) -f weights.mk HWM=$(BIN)/hwm

wheels:
	rm -rf gpu/packages
	$(PYTHON) -m pip install --quiet --no-index --no-deps --target gpu/packages $(wildcard $(WHEELS)/*.whl)

soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak -x

mutants: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo gpu build dist
