# Two commands do everything: `make demo` and `make test`. Each builds the environment first if need be.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# Test files run side by side; compiling, which is what they cost, hardly uses a second core by itself.
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow lint format types bench calibrate train-jump-network clean

demo: $(VENV)/.installed
	$(RUN) -m sojourn.cli demo

# Most tests compile for seconds to run for milliseconds (tests/exact, which does not, undoes this).
test: export JAX_DISABLE_MOST_OPTIMIZATIONS = 1
test: $(VENV)/.installed lint types
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.installed
	$(RUN) -m pytest -m slow -n $(WORKERS) --dist loadfile

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed
	$(VENV)/bin/mypy

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.bench
	$(RUN) benchmarks/hidden_markov.py
	$(RUN) benchmarks/particles.py
	$(RUN) benchmarks/marginalize.py
	$(RUN) benchmarks/score.py
	$(RUN) benchmarks/langevin.py
	$(RUN) benchmarks/jump_processes.py
	$(RUN) benchmarks/exceedance.py
	$(RUN) benchmarks/fractional_sde.py
	$(RUN) benchmarks/laws.py
	$(RUN) benchmarks/stochasticity.py
	$(RUN) benchmarks/crafter_protocol.py

# Simulation-based calibration of every engine and system, about an hour on two cores; goes on where it was stopped.
# Rewrites the tables of docs/calibration.md.
calibrate: $(VENV)/.installed
	$(RUN) benchmarks/calibration.py

# The weights of the amortised jump process, from simulation to file, in about an hour on two cores.
train-jump-network: $(VENV)/.installed
	$(RUN) -m sojourn.inference._train_jump_network

$(VENV)/.installed: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(RUN) -m pip install --quiet --editable ".[bench]"
	$(RUN) -m pip install --quiet --no-deps "particles>=0.4"
	touch $@

clean:
	rm -rf $(VENV) reports build dist .pytest_cache .ruff_cache .mypy_cache
