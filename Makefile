# dicomnode: two commands do everything on a fresh Debian machine with Python and root: make demo, make test.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := $(VENV)/.peers

.PHONY: demo test lint types tests bench clean help

help:            ## this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 12

demo: $(STAMP)   ## node, PACS stand-in and simulated scanner on this machine, end to end
	$(BIN)/dicomnode demo

test: $(STAMP) $(PEERS) lint types tests  ## lint, types, import contracts, then every test

lint: $(STAMP)   ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)  ## mypy strict on dicomnode and pipelines
	$(BIN)/mypy

tests: $(STAMP)  ## pytest alone
	$(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(STAMP) $(PEERS)  ## speed beside DCMTK and Orthanc, as ratios (takes long; --help on each script for less)
	$(BIN)/python -m tests.benchmarks.ingest
	$(BIN)/python -m tests.benchmarks.send
	$(BIN)/python -m tests.benchmarks.overhead
	$(BIN)/python -m tests.benchmarks.mrd

clean:           ## forget the environment and the demo
	rm -rf $(VENV) .demo

$(STAMP): pyproject.toml constraints.txt deploy/install.sh
	bash deploy/install.sh python $(PYTHON) $(VENV)
	touch $@

$(PEERS): deploy/install.sh | $(STAMP)
	bash deploy/install.sh peers && touch $@ || [ $$? = 3 ]
