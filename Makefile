# Everything sets itself up: `make run` and `make test` work in a fresh clone with Python 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Most tests wait for processes: two of them at a time are nearly twice as fast on two cores.
WORKERS ?= 2

export OMP_NUM_THREADS ?= 1

.PHONY: run test check format bench clean

run: $(READY)  ## train, save asynchronously, reload and compare, on 4 ranks
	$(BIN)/torchrun --nproc-per-node 4 -m ckptrun parallelism=fsdp_tp checkpoint=async $(ARGS)

test: $(READY)  ## all tests that need no GPU, but for the slow ones (ARGS="-m slow")
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

check: $(READY)  ## formatting, lint, types, and the rules of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_architecture.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## print the tables of docs/benchmarks.md
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
