# Everything a person runs. `make setup` comes first by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests at a time: one more than cores, for many of them wait.
JOBS ?= 3
# Training and test data, for what needs more than the repository holds.
DATA ?= $(if $(DQS_SHARED),$(DQS_SHARED),../shared)/data

.PHONY: help setup demo serve test test-all soak check bench proto models kenlm-tools constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup: $(READY)  ## install into .venv and compile the kernels

$(READY): pyproject.toml models/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e models -e '.[server,ray,otel,train,dev]'
	$(BIN)/dqs warm
	touch $@

demo: $(READY)  ## start a service, send it a bilingual sample, print the verdicts
	BIN=$(BIN) bash .ci/demo.sh

serve: $(READY)  ## start a service on this machine
	$(BIN)/dqs serve

test: $(READY)  ## every test but the long ones
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadgroup

test-all: $(READY)  ## the long tests too
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup

soak: $(READY)  ## an hour of mixed load with workers that are killed now and then
	$(BIN)/python -m tests.bench.soak --minutes $(or $(MINUTES),60) --workers 2 --kill-s 300

check: $(READY)  ## format, lint, types, import contracts, stubs as generated
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	bash .ci/generate-stubs.sh --check

bench: $(READY) kenlm-tools  ## speed and quality figures, and the comparison with datatrove
	PATH="$(CURDIR)/.cache/kenlm/bin:$$PATH" BIN=$(BIN) DATA=$(DATA) bash .ci/bench.sh

proto:  ## generate dqs/v1 from proto/
	bash .ci/generate-stubs.sh

kenlm-tools:  ## build lmplz and build_binary from KenLM's source distribution, for training
	bash .ci/build-kenlm.sh .cache/kenlm

models: $(READY) kenlm-tools  ## train the default models again
	PATH="$(CURDIR)/.cache/kenlm/bin:$$PATH" BIN=$(BIN) DATA=$(DATA) bash .ci/train-models.sh

constraints: $(READY)  ## pin what is installed now
	$(BIN)/python -m pip freeze --exclude-editable --exclude dqs --exclude dqs-models | grep -v ' @ ' > constraints.txt

clean:  ## remove what the other targets made
	rm -rf $(VENV) .venv-* .cache
