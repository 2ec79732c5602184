# Needs Python 3.11 or newer with venv, and make. All else is installed into .venv.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/installed
NEEDS_GB := 8
# Where this is set, each process that a test starts would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo detect-demo install test test-outside test-all lint lint-imports matrix coverage timm-suite timm-suite-all constraints clean

help:
	@echo "make demo      train, fold, export, publish, download and classify real digits (.venv is made first)"
	@echo "make detect-demo VOC=FOLDER   train, export and run a detector on real pictures, draw what it finds"
	@echo "make test      lint, the ordinary tests, and timm's own tests on one network of each class but VGG"
	@echo "make test-all  the slow tests too: every network in timm's own suite, every Python that is here"
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

# Pictures with boxes are the user's own: none come with the project.
detect-demo: install
	@test -n "$(VOC)" || { echo "name a VOC folder: make detect-demo VOC=data/bccd"; exit 1; }
	$(BIN)/ccnn detect-demo --data "voc:$(VOC)"

# One thread a worker: two workers with two threads each get into each other's way.
test: lint lint-imports timm-suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

# What needs real pictures (CCNN_TEST_DATA) or other programs (OLAH_CLI, TRANSFORMERS_JS, ONNXRUNTIME_WEB and a
# browser): CONTRIBUTING.md.
test-outside: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "(data or judge or browser) and not slow"

test-all: lint lint-imports timm-suite-all matrix
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# Every Python that is here, and the lowest versions of the dependencies: docs/pythons.md.
matrix: install
	$(BIN)/python scripts/python_matrix.py

# Lines and branches that the ordinary tests reach, in the processes that they start too.
coverage: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" --cov --cov-report=term:skip-covered

# timm's own tests, from its source distribution: on one network of each class but VGG, and on every network.
timm-suite: install
	$(BIN)/python scripts/timm_suite.py --jobs $(WORKERS) -- -q

timm-suite-all: SHELL := bash
timm-suite-all: install
	set -o pipefail; $(BIN)/python scripts/timm_suite.py --all --jobs $(WORKERS) -- -q 2>&1 | sed 's#$(CURDIR)/##; s#$(HOME)/##' \
		| tee docs/timm_suite.txt

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Import-linter does not see folders that package-dir maps; in a built tree it does.
lint-imports: install
	@rm -rf build && mkdir -p build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/tree .
	cd build/tree && PYTHONPATH=. ../../$(BIN)/lint-imports ../../pyproject.toml

constraints: install
	@{ echo "# Versions that the tests passed with: pip install -c constraints.txt (\`make constraints\` renews them)."; \
		$(BIN)/python -m pip freeze --exclude-editable | sed 's/^onnxruntime-gpu==\(.*\)/&\nonnxruntime==\1/'; } > constraints.txt

clean:
	rm -rf .venv build dist ccnn-demo ccnn-detect-demo
