# `make` alone says what there is: what follows ## behind a target.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# The one C++ file, compiled when the project is installed; again when it has changed.
BUILT  := $(VENV)/.built
# DVC is large, and only needed to share results; tests need more packages than results do.
DVC    := $(VENV)/.dvc-ready
TESTS  := $(VENV)/.tests-ready

# How many jobs may hold a GPU at once: those of MOAT_GPUS, or all, times slots_per_gpu. Without a GPU nothing is limited
# but the cores.
comma  := ,
GPUS   ?= $(if $(MOAT_GPUS),$(words $(subst $(comma), ,$(MOAT_GPUS))),$(words $(wildcard /dev/nvidia[0-9]*)))
SLOTS  := $(shell sed -n 's/^slots_per_gpu: *\([0-9]*\).*/\1/p' config/config.yaml)
LIMIT  := $(if $(filter-out 0,$(GPUS)),--resources gpu=$(shell expr $(GPUS) \* $(SLOTS)))

# What a user's environment or pip.conf says about where pip installs does not hold in a virtual environment.
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT

.PHONY: help quickstart smoke mini repro pull test test-long test-isa faults lint format clean

help: ## this list
	@echo "Each target sets itself up: a virtual environment in $(VENV), with pinned versions."
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | \
	  awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

# $(call make_scale,SCALE,what to do next)
define make_scale
@$(BIN)/python -m moat.pipeline.progress_line --log logs/$(1).log \
  --then "The page: $(CURDIR)/results/$(1)/report.html\n$(2)" \
  -- $(BIN)/snakemake --cores all --keep-going --scheduler greedy $(LIMIT) --config scale=$(1)
endef
NEXT := Next: make smoke (every method and suite) or the reproduction, for GPUs:\n  $(BIN)/snakemake --cores all \
  --resources gpu=2 --config scale=paper   (what it costs: $(BIN)/moat plan --scale paper)

quickstart: $(BUILT) ## the systems of the four papers on digits: the first page, in minutes on two cores
	$(call make_scale,quickstart,$(NEXT))

smoke: $(BUILT) ## every method and suite on digits, as briefly as possible
	$(call make_scale,smoke)

mini: $(BUILT) ## the same pipeline on real CIFAR images: a few hours on two cores
	$(call make_scale,mini)

# Through DVC (docs/dvc.md): make results anew where something changed; get those that another machine made.
repro: $(BUILT) $(DVC) ## all results through DVC, made again where something changed (docs/dvc.md)
	PATH="$(CURDIR)/$(BIN):$$PATH" SNAKEMAKE_OPTIONS="$(LIMIT)" dvc repro

pull: $(DVC) ## results that another machine made, through DVC
	$(BIN)/moat pull

test: $(TESTS) $(DVC) ## linters, and a case of each kind of test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

# The other cases of large tables, every method, and whole pipelines, through DVC and a dozen injected faults. MINUTES=20
# begins no test after so many minutes, and says how many that leaves out.
test-long: $(TESTS) $(DVC) ## all other tests: every method, whole pipelines, DVC, injected faults
	OMP_NUM_THREADS=1 MOAT_TEST_MINUTES=$(MINUTES) $(BIN)/pytest -n auto --dist loadfile -m long

# The tests of what computes numbers, once more as other machines would run them. ISA=avx2: PyTorch's loops, the compiled
# convolution and oneDNN as on a processor without AVX-512; ISA=default: PyTorch's loops without AVX, and none of the
# compiled convolution; ISA=uncompiled: as where there is no compiler. NUMERIC="kernels models" runs some of the folders.
ISA            ?= avx2
NUMERIC        ?= attacks evaluation kernels methods models training
ISA_avx2       := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
ISA_aten-avx2  := ATEN_CPU_CAPABILITY=avx2
ISA_default    := ATEN_CPU_CAPABILITY=default
ISA_uncompiled := MOAT_TEST_COMPILED=no
test-isa: $(TESTS) ## what computes numbers, as on other machines (ISA=avx2, aten-avx2, default or uncompiled)
	@test -n "$(ISA_$(ISA))" || { echo "ISA=$(ISA); allowed: avx2, aten-avx2, default, uncompiled"; exit 2; }
	OMP_NUM_THREADS=1 $(ISA_$(ISA)) $(BIN)/pytest -n auto --dist loadfile $(NUMERIC:%=tests/%)

# More faults: make faults N=200 SEED=1
N    ?= 200
SEED ?= 1
faults: $(TESTS) ## more injected faults: make faults N=200 SEED=1
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/harness.py --faults $(N) --seed $(SEED)

lint: $(TESTS) ## linters and the tests of style
	$(BIN)/pytest tests/style

format: $(TESTS) ## formatters
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/snakefmt workflow Snakefile

# A half-made environment has no .ready and is made anew.
$(READY): pyproject.toml envs/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "moat needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try make PYTHON=python3.12"; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint envs/requirements.lock --editable '.[workflow]'
	touch $(BUILT) $@

# It says where it is compiled and where not: without a compiler moat works, slower.
$(BUILT): hatch_build.py src/moat/kernels/winograd.cpp | $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(DVC): $(BUILT)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint envs/requirements.lock --editable '.[dvc]'
	touch $@

$(TESTS): $(BUILT)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint envs/requirements.lock --editable '.[test]'
	touch $@

# The environment only; results and downloads are yours to delete.
clean: ## removes the environment; results and downloads stay
	rm -rf $(VENV) .pytest_cache .ruff_cache
