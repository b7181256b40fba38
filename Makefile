# Every target does its own set-up: a virtual environment in .venv (tools/setup), and servers to test with (tools/servers).
# ARGS goes to the program that a target runs: make test ARGS="-k timeline"

SHELL = /bin/sh
# Through the link: as root, .venv may lead to a place that PostgreSQL's account can enter, and the interpreter must know itself there.
VENV = $(shell readlink -f .venv)
JOBS = 3

.PHONY: help venv servers test check demo bench clean
.NOTPARALLEL:

help:
	@echo 'make test    run all tests, on real servers (JOBS=$(JOBS) processes)'
	@echo 'make check   ruff, mypy and import-linter'
	@echo 'make demo    the guided tour on a PostgreSQL of its own'
	@echo 'make bench   measure against pg_basebackup, pgBackRest and Barman (some two hours)'
	@echo 'make clean   remove what these made'

venv:
	@tools/setup

servers: venv
	@tools/servers

test: servers
	$(VENV)/bin/python -m pytest --numprocesses=$(JOBS) --dist=worksteal $(ARGS)

check: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

demo: venv
	$(VENV)/bin/pgkeep demo $(ARGS)

bench: venv
	$(VENV)/bin/python -m bench $(ARGS)

clean:
	@test ! -e .venv || rm -rf "$(VENV)"
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
