# Needs Python 3.11 or newer with venv, and make. All else is installed into .venv.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/installed
NEEDS_GB := 8
# Where this is set, each process that a test starts would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo install test test-longer test-outside test-all lint lint-imports matrix coverage timm-suite timm-suite-all docs constraints clean

help:
	@echo "make demo      train, fold, export, publish, download and classify real digits (.venv is made first)"
	@echo "make docs      the documentation as a site, in build/docs"
	@echo "make test      lint, the ordinary tests, and timm's own tests on one network"
	@echo "make test-longer  what CI runs besides: whole commands, processes killed, timm's own tests on one network of each class"
	@echo "make test-all  everything: every network in timm's own suite, every Python that is here"
	@echo "make coverage  what the ordinary tests reach"
	@echo "make clean     remove what the above made"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "ccnn-zoo needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up .venv, once: pip fetches some 3 GB and takes 7 GB of disk, most of it torch's CUDA libraries."
	@echo "That takes a few minutes; pip says below what it is at."
	@test -d .venv || df -Pk . | awk 'NR == 2 && $$4 < $(NEEDS_GB) * 1048576 { \
		printf "only %.1f GB are free here, and $(NEEDS_GB) are needed\n", $$4 / 1048576; exit 1 }'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev]'
	@touch $@

install: $(INSTALLED)

demo: install
	$(BIN)/ccnn demo

# One thread a worker: two workers with two threads each get into each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
TIMM_SUITE := $(BIN)/python scripts/timm_suite.py --jobs $(WORKERS)

test: lint lint-imports
	$(TIMM_SUITE) --models ccnn_resnet20_cifar -- -q
	$(PYTEST) -m "not longer and not slow"

# timm's tests of what `make test` has run are left out.
# Of these, what needs real pictures (CCNN_TEST_DATA) or other programs (CONTRIBUTING.md) skips where there are none.
test-longer: install
	$(TIMM_SUITE) -- -q -k "not ccnn_resnet20_cifar and not csgd"
	$(PYTEST) -m "(longer or data or judge or browser) and not slow"

test-outside: install
	$(PYTEST) -m "(data or judge or browser) and not slow"

# How it ended is kept in docs/test_all.txt, docs/timm_suite.txt and docs/pythons.md.
test-all: SHELL := bash
test-all: lint lint-imports timm-suite-all matrix
	@mkdir -p build
	$(PYTEST) 2>&1 | tee build/test_all.log; outcome=$${PIPESTATUS[0]}; \
		{ git rev-parse HEAD; grep -E '^(SKIPPED|FAILED|ERROR|=+ .* in [0-9.]+s)' build/test_all.log; } > docs/test_all.txt; \
		exit $$outcome

# Every Python that is here, and the lowest versions of the dependencies: docs/pythons.md.
matrix: install
	$(BIN)/python scripts/python_matrix.py

# Lines and branches that the tests of `make test` reach, in the processes that they start too; then the longer ones as well.
coverage: install
	$(PYTEST) -m "not longer and not slow" --cov --cov-report=term:skip-covered
	$(BIN)/coverage report > build/coverage.txt
	$(PYTEST) -m "longer and not slow" --cov --cov-append --cov-report=term:skip-covered
	$(BIN)/coverage report > build/coverage_longer.txt

# timm's own tests, from its source distribution: on one network of each class but VGG, and on every network.
timm-suite: install
	$(TIMM_SUITE) -- -q

timm-suite-all: SHELL := bash
timm-suite-all: install
	set -o pipefail; $(TIMM_SUITE) --all -- -q 2>&1 | sed 's#$(CURDIR)/##; s#$(HOME)/##' \
		| tee docs/timm_suite.txt

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Import-linter does not see folders that package-dir maps: here they lie where they are installed.
lint-imports: install
	@rm -rf build/tree && mkdir -p build/tree
	cp -R ccnn_zoo build/tree && cp -R export hub build/tree/ccnn_zoo
	cd build/tree && PYTHONPATH=. ../../$(BIN)/lint-imports ../../pyproject.toml

# Strict: warnings, broken links and public names without an entry are errors. Opens no network.
docs: install
	OMP_NUM_THREADS=1 $(BIN)/python scripts/make_site.py build/docs

constraints: install
	@{ echo "# Versions that the tests passed with: pip install -c constraints.txt (\`make constraints\` renews them)."; \
		$(BIN)/python -m pip freeze --exclude-editable | sed 's/^onnxruntime-gpu==\(.*\)/&\nonnxruntime==\1/'; } > constraints.txt

clean:
	rm -rf .venv build dist ccnn-demo
