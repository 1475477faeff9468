# make book    the book of the published records, in _build/html/index.html; PROFILE=quick to train a profile,
#              CHAPTERS=warm_start,reset for some of it, OPTIONS="--pdf" for more of `repro book --help`
# make test    all tests: software, science, every chapter, the book
PROFILE ?=
CHAPTERS ?=
OPTIONS ?=
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m

.PHONY: book test lint format bench lock clean

book: $(VENV)/ready
	$(RUN) repro book $(if $(PROFILE),--profile $(PROFILE)) $(if $(CHAPTERS),--chapters $(CHAPTERS)) $(OPTIONS)

test: $(VENV)/ready
	$(RUN) pytest -n 2 --dist loadgroup

lint: $(VENV)/ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(VENV)/bin/lint-imports

format: $(VENV)/ready
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: $(VENV)/ready
	$(RUN) benchmarks.training

# The exact versions of requirements.lock, then this package in place.
$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# New versions of everything, for every platform and Python that pyproject.toml allows.
lock:
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --upgrade --output-file requirements.lock

clean:
	rm -rf _build .pytest_cache .ruff_cache build *.egg-info
