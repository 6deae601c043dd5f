# Everything is installed by pip into .venv, from pyproject.toml and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

DIGITS := .demo/datasets/digits

.PHONY: demo test test-pools lint register serve screenshots bench bench-storage clean-demo

demo: $(STAMP)
	$(BIN)/python examples/make_dataset.py $(DIGITS)
	$(BIN)/python -m flows run examples/digits/job.yaml

test: $(STAMP)
	# After the crash of a worker xdist may wait for its tests for ever.
	$(BIN)/python -m pytest -n 3 --dist loadfile --max-worker-restart 0 \
		--ignore tests/e2e/test_redelivery.py
	# Alone, since its stories are about who hears of whom in time.
	$(BIN)/python -m pytest tests/e2e/test_redelivery.py

# Apart, with packages that would slow down every server and worker of the other tests.
test-pools: $(STAMP)
	test -d .venv/pools || $(PYTHON) -m venv .venv/pools
	.venv/pools/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[pools]'
	.venv/pools/bin/python -m pytest tests/deployments/test_pool_templates.py

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# With the server that PREFECT_API_URL names; `make serve` does it for its own.
register: $(STAMP)
	$(BIN)/python -m deployments.register

# The form of the UI is filled with a job on the digits, so they have to be there.
serve: $(STAMP) $(DIGITS)
	$(BIN)/python -m deployments.serve

$(DIGITS): | $(STAMP)
	$(BIN)/python examples/make_dataset.py $@

# The pictures of docs/ui.md; wants Chromium.
screenshots: $(STAMP)
	$(BIN)/python -m tests.ui_screenshots docs/images

bench: $(STAMP)
	$(BIN)/python benchmarks/bench_launch.py
	$(BIN)/python benchmarks/bench_supervision.py
	$(BIN)/python benchmarks/bench_orchestration.py

# Its peers are installed for it alone: the tests need none of them.
bench-storage: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/bench_storage.py

clean-demo:
	rm -rf .demo

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
