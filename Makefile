# Two commands from a fresh clone: `make demo` and `make test`. Everything they need is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and pinned: a bare range would take the newest build, and on Linux gigabytes of CUDA with it
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)

.PHONY: demo test test-fast lint format docs bench install clean

demo: $(VENV)/.installed ## five minutes, no GPU, no network: corpus, tokenizer, training, samples, picture
	@bash scripts/demo.sh

test: $(VENV)/.installed-dev ## the whole test suite; prints the 20 slowest
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=20

test-fast: $(VENV)/.installed-dev ## what is not slow (tests/slow.txt): a minute or so, while you work
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=20 -m 'not slow'

lint: $(VENV)/.installed-dev ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev ## the manual, into site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-bench ## speed against peers (see benchmarks/README.md)
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/generation.py

install: $(VENV)/.installed-dev ## everything a developer needs

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("gptlab needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# litgpt asks for an older hub client than transformers; the two run together all the same, so it goes in by itself.
$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps -r benchmarks/peers.txt
	touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
