# make run: from nothing to figures and a table. make test: from nothing to a tested checkout. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test clean

run: .venv/ready
	$(BIN)/python -m simulations.run -m strategy=fedavg,fedgen seed=0,1,2
	$(BIN)/python -m simulations.report outputs/digits

test: .venv/ready
	$(BIN)/python -m pytest -q

.venv/ready: pins.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r pins.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch .venv/ready

clean:
	rm -rf .venv
