# `make demo` and `make test` do everything on a fresh machine; each makes .venv itself.
# The first installation compiles llama.cpp (about 5 minutes on 2 cores, told as they pass); pip keeps the result for later ones.
# Without a compiler: make demo WHEELS=INDEX takes a wheel of llama-cpp-python that is compiled already (docs/install.md).

PYTHON ?= python3
BIN := .venv/bin
# Tests that run at a time. Real models compute with one thread each then, so two keep two cores busy.
WORKERS ?= 2
# A worker runs whole files, in the order of their names: a file's fixtures (a model, a browser, a server) are made once.
PYTEST_OPTIONS := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/pytest $(PYTEST_OPTIONS)
QUESTION ?= How was your day?

# A virtual machine may show AMX and die of its first instruction (seen: ldtilecfg, a segmentation fault in the first decode), and
# llama.cpp uses what the compiler finds. Without it the compiler finds AVX-512, which such a processor has as well.
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
ifneq ($(shell grep -sm1 -o amx_tile /proc/cpuinfo && cc $(NO_AMX) -E -x c /dev/null > /dev/null 2>&1 && echo known),)
export CFLAGS := $(CFLAGS) $(NO_AMX)
export CXXFLAGS := $(CXXFLAGS) $(NO_AMX)
endif
export WHEELS

.PHONY: demo test checks tests test-models coverage fuzz faults mutants soak bench bench-tools quality exports compatibility handbook docs clean

# The next `make` begins again what failed: where Debian's python3-venv is missing, a .venv is left that has no pip in it.
.DELETE_ON_ERROR:

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml
	@$(BIN)/python install.py demo
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml
	@$(BIN)/python install.py demo,dev
	touch $@ .venv/.demo

.venv/.mutants: .venv/bin/python pyproject.toml
	@$(BIN)/python install.py demo,dev,mutants
	touch $@ .venv/.dev .venv/.demo

.venv/.docs: .venv/bin/python pyproject.toml
	@$(BIN)/python install.py docs
	touch $@

demo: .venv/.demo
	@mkdir -p build
	$(BIN)/localsteer extract vectors/happy/concept.yaml -m demo -o build/happy.gguf
	$(BIN)/localsteer generate "$(QUESTION)" -m demo -s build/happy.gguf --compare -n 80 --seed 4

# Side by side. What the checks say is shown in one piece, so that it does not run into the lines of the tests.
test: .venv/.dev
	@$(MAKE) --no-print-directory --jobs 2 checks tests

checks: .venv/.dev
	@mkdir -p build
	@{ $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-logo && $(BIN)/mypy; } > build/checks.txt 2>&1; \
	status=$$?; echo; cat build/checks.txt; exit $$status

tests: .venv/.dev
	$(PYTEST)

# What measures data rather than code, and every fuzz test at full length: an hour. Run it before a release. Comparisons with
# llama.cpp's own programs are skipped where `make bench-tools` has not built them.
test-models: .venv/.dev
	$(PYTEST) -m models
	@$(MAKE) --no-print-directory fuzz

# Which lines of localsteer/ no test runs: at least 92 % are run. Twice as long as the tests alone.
coverage: .venv/.dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PYTEST_OPTIONS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Every door takes up to 10,000 bad inputs: files of all kinds, texts, requests. FUZZ=N tries N instead; `make test` some 400. Of model
# files 1,500, a quarter of an hour. What came of them goes into docs/reliability.md.
FUZZ ?= 10000
fuzz: export LOCALSTEER_DOORS := docs/reliability.md
fuzz: .venv/.dev
	LOCALSTEER_MUTATIONS=$(FUZZ) LOCALSTEER_EXAMPLES=$(FUZZ) $(PYTEST) \
	  tests/files/test_mutated_files.py tests/test_doors.py tests/policy/test_hostile_texts.py
	LOCALSTEER_MUTATIONS=$(FUZZ) LOCALSTEER_EXAMPLES=40 $(PYTEST) tests/server/test_hostile_requests.py tests/server/test_numbers.py
	LOCALSTEER_EXAMPLES=2000 $(PYTEST) tests/llama/test_made_schemas.py
	LOCALSTEER_EXAMPLES=1000 $(PYTEST) tests/end_to_end/test_chat_fuzz.py
	$(BIN)/python -m tests.llama.mutant_doors 1500 docs/reliability.md

# 200 kills by four signals over every command that writes, some ten minutes: into docs/reliability.md. `make test` kills ten.
KILLS ?= 200
faults: .venv/.dev
	$(BIN)/python -m tests.kills $(KILLS) docs/reliability.md

# 300 small faults in the code, one at a time, and whether a test catches them (85 %, or it fails): some 20 minutes of a
# processor, into docs/reliability.md. An interrupted run goes on; MUTANTS=N tries N.
MUTANTS ?= 300
mutants: .venv/.mutants
	$(BIN)/python -m tests.mutants $(MUTANTS) docs/reliability.md

# An hour of mixed requests to a server of the demo model: into docs/reliability.md.
soak: .venv/.dev
	$(BIN)/python -m bench.soak

bench-tools: .venv/.dev
	$(BIN)/python -m bench.tools

bench: .venv/.dev bench-tools
	$(BIN)/python -m bench.run
	$(BIN)/python -m handbook

# What steering does, and what it costs, beside prompting and the peers: hours. LOCALSTEER_REAL_MODEL=FILE adds that model, which
# takes a night, or an evening with QUALITY=--quick; an interrupted run goes on.
quality: .venv/.dev
	$(BIN)/python -m bench.quality $(QUALITY)
	$(BIN)/python -m handbook

# Every vector of the library, exported and baked, in llama.cpp's own programs (`make test-models` takes one), and how near adapters
# come on all models; LOCALSTEER_REAL_MODEL=FILE adds that model. An interrupted run goes on: EXPORTS="--model real happy" is a part.
exports: .venv/.dev bench-tools
	LOCALSTEER_EXPORTS=all $(BIN)/pytest -s -m models tests/end_to_end/test_export.py
	$(BIN)/python -m bench.exports $(EXPORTS)

# llama.cpp's own server tests, pointed at `localsteer serve`, and at llama-server with the same model: into docs/compatibility.md.
# Some 40 minutes, once; an interrupted run goes on, and COMPATIBILITY="--again failed" runs what failed.
compatibility: .venv/.dev
	$(BIN)/python -m bench.llama_server_tests --control
	$(BIN)/python -m bench.llama_server_tests $(COMPATIBILITY)

# What in docs/ is written by programs: help pages, the Python API, plots, the figures of the comparison. `make test` says when they
# are out of date.
handbook: .venv/.dev
	$(BIN)/python -m handbook

# The documentation as a site, its links checked: build/site/index.html, which a browser can open as it is.
docs: .venv/.docs
	$(BIN)/python -m handbook.site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist
