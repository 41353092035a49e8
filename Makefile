# make demo    install, draw images, train, evaluate, score, plot
# make test    install, lint, types, all tests
# make quick   install, lint, types, the tests of changed files, or of a room: make quick ROOM=data
# make docs    write docs/cli.md from the program's own help

PYTHON ?= python3
VENV ?= .venv
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A worker that dies ends the run: a new one would be waited for without end.
PYTEST = $(VENV)/bin/python -m pytest -n logical --dist loadfile --max-worker-restart 0

.PHONY: demo test quick docs clean

$(VENV)/.runs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e '.[plots]'
	@touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(INSTALL) -e '.[plots,dev]'
	@touch $@

demo: $(VENV)/.runs
	$(VENV)/bin/python tools/demo.py --out out/demo

test: $(VENV)/.tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST)

# The daily loop.
quick: $(VENV)/.tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST) $(if $(ROOM),tests/$(ROOM) tests/test_layout.py,$$($(VENV)/bin/python tools/changed_tests.py))

docs: $(VENV)/.tests
	$(VENV)/bin/python tools/write_cli_docs.py

clean:
	rm -rf $(VENV) out
