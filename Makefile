# make run: from nothing to figures and a table. make test: from nothing to a tested checkout. Both make .venv first.
# make test-flower: the tests of Flower with the newest flwr that pyproject.toml allows.
# make lint: style, types and docstrings. make mnist DATA=<folder>: FedGen's MNIST experiment. DATA holds MNIST/raw and the
# partitions partition_fedgen_alpha*.npz.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONDONTWRITEBYTECODE =  # many processes import the same modules, which need to be compiled once

MNIST = experiment=fedgen_mnist data.root=$(DATA) partition=from_file
PARTITIONS = $(DATA)/partition_fedgen_alpha0.1.npz,$(DATA)/partition_fedgen_alpha1.0.npz

.PHONY: run test test-flower lint mnist clean

run: .venv/ready
	$(BIN)/fedkd sweep rounds=40 clients_per_vmap=5 strategy=fedavg,fedgen seed=0,1,2
	$(BIN)/fedkd report outputs/digits
	@echo "Next: open outputs/digits/report/report.html, or try another strategy: $(BIN)/fedkd run strategy=feddf public_data=held_out"

test: .venv/ready
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --timeout 300 --timeout-method thread

test-flower: .venv/ready
	$(BIN)/python -m tests.newest_flower

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/interrogate fedkd strategies simulations

# pins.txt has all dependencies, which pip checks, so that two processes install half of it each. What is imported is compiled, which takes
# a fifth of the time that all files take.
.venv/ready: pins.txt pyproject.toml
	$(PYTHON) -m venv .venv
	awk '{ print > ".venv/pins" NR % 2 ".txt" }' pins.txt
	printf '%s\n' .venv/pins*.txt | xargs -n 1 -P 2 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check --quiet --disable-pip-version-check
	$(BIN)/python -c "import ray, torch._dynamo, simulations.run, simulations.reports.builder"
	touch .venv/ready

mnist: .venv/ready
	$(BIN)/fedkd sweep $(MNIST) partition.path=$(PARTITIONS) strategy=fedavg,fedgen seed=0,1,2
	$(BIN)/fedkd sweep $(MNIST) partition.path=$(DATA)/partition_fedgen_alpha0.1.npz rounds=100 \
		strategy=fedprox,feddistill,fedensemble seed=0,1,2
	$(BIN)/fedkd report outputs/fedgen_mnist --until 100 --output outputs/fedgen_mnist/report100
	$(BIN)/fedkd report outputs/fedgen_mnist --until 200

clean:
	rm -rf .venv
