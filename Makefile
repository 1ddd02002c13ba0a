# The two commands are `make train` and `make test`; everything that they need is installed into .venv by tools/setup.sh.
PYTHON ?= python3
DISK_GIB ?= 10
SECONDS ?= 600
BIN := .venv/bin
RUST := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name 'Cargo.toml')
# Nothing is looked up on the network and nothing reports home.
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export RAY_USAGE_STATS_ENABLED = 0

# So many processes run tests, each on a core of its own: TESTERS=4 where there are four.
TESTERS ?= 2
PYTEST := $(BIN)/python -m pytest -q --durations=40
PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) -n $(TESTERS) --dist worksteal

KILLS ?= 200
.PHONY: help setup train test test-rust test-python test-slow test-peers soak scoreboard sass bench bench-recipes bench-staleness bench-train bench-gpu carry docs fuzz format clean

help:
	@echo "make train      a tiny model learns to sort under DAPO: offline, about a minute (ARGS='--set recipe=grpo')"
	@echo "make test       everything that a contributor runs before a change (about 12 minutes on two cores)"
	@echo "make test-slow  the slow and heavy checks (about 45 minutes on two cores)"
	@echo "make soak       kills runs of the trainer at any moment and resumes them (KILLS=200, about an hour)"
	@echo "make test-peers what is compared with TRL, verl and Liger, which are installed beside the project"
	@echo "make scoreboard  the conformance kit over TRL, verl, Liger and grpokit, written to docs/scoreboard.md (about 10 minutes)"
	@echo "make sass       what the compiler makes of the Triton kernels, written to benches/results (2 minutes, no GPU)"
	@echo "make bench      the measurements in benches/results (installs the rivals beside the project)"
	@echo "make bench-recipes  every recipe, 100 steps on 3 seeds and 3 learning rates (about 40 minutes)"
	@echo "make bench-train  the trainer beside TRL's: the same model, task, loss and learning rate (about 10 minutes)"
	@echo "make bench-staleness  what stands stale data: 9 arms, 4 ages, 3 learning rates, 5 seeds (about an hour)"
	@echo "make bench-gpu  .carried/, with all that benches/gpu/run.py needs on a machine with a GPU, and the command to run there"
	@echo "make docs       writes docs/algorithms.md, docs/off_policy.md and their plots from the register"
	@echo "make fuzz       looks for inputs that break the readers of ids, records, snapshots and JSON lines (SECONDS=600 each)"
	@echo "make format     formats Rust and Python"
	@echo "make clean      removes what make has built"

setup: .venv/.project

.venv/.locked: requirements.lock tools/setup.sh
	@PYTHON='$(PYTHON)' DISK_GIB='$(DISK_GIB)' sh tools/setup.sh dependencies

.venv/.project: .venv/.locked pyproject.toml $(RUST)
	@sh tools/setup.sh project

train: setup
	@$(BIN)/grpokit train $(ARGS)

test: setup test-rust test-python

test-rust: setup
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --package grpokit-core --locked; \
	else cargo test --quiet --package grpokit-core --locked; fi

test-python: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest grpokit._native
	$(PARALLEL)

test-slow: setup test-peers .triton36/.installed .sinks/.installed
	HYPOTHESIS_PROFILE=thorough $(PARALLEL) tests/rows
	$(PARALLEL) -m slow

soak: setup
	GRPOKIT_KILLS=$(KILLS) $(BIN)/python -m pytest -q -m slow tests/trainer/test_resume.py

test-peers: .peers/.installed
	PYTHONPATH=.peers $(PARALLEL) -W ignore -m peers tests/peers

.peers/.installed: requirements-peers.txt .venv/.project
	@rm -rf .peers
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --target .peers --no-deps -r requirements-peers.txt
	@touch .peers/.installed

.sinks/.installed: requirements-sinks.txt .venv/.project
	@rm -rf .sinks
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --target .sinks --no-deps -r requirements-sinks.txt
	@touch .sinks/.installed

.triton36/.installed: requirements-triton36.txt .venv/.project
	@rm -rf .triton36
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --target .triton36 --no-deps -r requirements-triton36.txt
	@touch .triton36/.installed

scoreboard: .peers/.installed
	PYTHONPATH=.peers $(BIN)/python tools/scoreboard.py $(ARGS)

sass: .triton36/.installed
	$(BIN)/python tools/sass.py $(ARGS)

bench: .peers/.installed
	cargo build --quiet --release --package grpokit-core --example group_path
	for name in group_path rows packing attempts mismatch_stats ledger files ray_filter routing_replay score_norms report; do PYTHONPATH=.peers $(BIN)/python benches/python/$$name.py || exit 1; done

bench-recipes: setup
	$(BIN)/python benches/python/recipes.py $(ARGS)

bench-train: .peers/.installed
	PYTHONPATH=.peers $(BIN)/python -W ignore benches/python/train.py $(ARGS)

bench-staleness: setup
	$(BIN)/python benches/python/staleness.py $(ARGS)

carry: setup
	$(BIN)/python benches/gpu/carry.py

bench-gpu: carry
	@echo "Take this repository with .carried/ to a machine with a Hopper GPU, torch 2.11, Triton 3.6 and CuPy, and there:"
	@echo "python benches/gpu/run.py --out DIR    # 9 minutes; gpu.json and gpu.md in DIR"

docs: setup
	$(BIN)/python tools/algorithms.py
	$(BIN)/python tools/off_policy.py

# libFuzzer and the address sanitizer need a compiler of tomorrow, or one that believes to be.
fuzz: setup
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-fuzz
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --target .fuzz -r fuzz/requirements.txt
	for name in ids records snapshots; do mkdir -p fuzz/corpus/$$name; \
	RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir fuzz $$name fuzz/corpus/$$name fuzz/seeds/$$name -- \
	-max_total_time=$(SECONDS) -rss_limit_mb=1024 -malloc_limit_mb=128 -print_final_stats=1 || exit 1; done
	mkdir -p fuzz/corpus/jsonl fuzz/artifacts/jsonl
	PYTHONPATH=.fuzz $(BIN)/python -m fuzz.jsonl fuzz/corpus/jsonl fuzz/seeds/jsonl -max_total_time=$(SECONDS) \
	-max_len=2048 -artifact_prefix=fuzz/artifacts/jsonl/ -print_final_stats=1

format: setup
	cargo fmt --all
	$(BIN)/python tools/stubs.py
	$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

clean:
	rm -rf .venv .peers .triton36 .sinks .carried .fuzz fuzz/target target dist python/grpokit/_native*.so
