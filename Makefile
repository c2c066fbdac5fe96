# `make demo` and `make test` do everything on a fresh machine; each makes .venv itself.
# The first installation compiles llama.cpp (about 5 minutes on 2 cores); pip keeps the result for later ones.

PYTHON ?= python3
BIN := .venv/bin
QUESTION ?= How was your day?

.PHONY: demo test bench bench-tools quality exports clean

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[demo,dev]"
	touch $@ .venv/.demo

demo: .venv/.demo
	@mkdir -p build
	$(BIN)/localsteer extract vectors/happy/concept.yaml -m demo -o build/happy.gguf
	$(BIN)/localsteer generate "$(QUESTION)" -m demo -s build/happy.gguf --compare -n 80 --seed 4

test: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

bench-tools: .venv/.dev
	$(BIN)/python -m bench.tools

bench: .venv/.dev bench-tools
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.steering

quality: .venv/.dev bench-tools
	$(BIN)/python -m bench.quality
	$(BIN)/python -m bench.quality --base

# Every vector of the library, exported and baked, in llama.cpp's own programs; `make test` takes one.
exports: .venv/.dev bench-tools
	LOCALSTEER_EXPORTS=all $(BIN)/pytest -s tests/end_to_end/test_export.py

clean:
	rm -rf .venv build dist
