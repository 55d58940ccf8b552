# make run   set up and start the sensor          make test   linter, type checker, tests
# make bench speed and memory, as one table       make clean  remove what the others made
# PYTHON, PORT and FILE may be given: make run PORT=2323

PYTHON ?= python3
PORT ?= 12345
FILE ?= data/tcppc-%Y%m%d.jsonl
VENV := .venv
BIN := $(VENV)/bin
# Real clients and tools that the tests use.
DEBIAN := curl gcc iproute2 libc6-dev libssl-dev ncat netcat-openbsd netcat-traditional nftables openssl socat \
  systemd util-linux

.PHONY: run test lint bench clean debian

run: $(VENV)/installed
	@$(BIN)/tcppc -p $(PORT) -w '$(FILE)' -T 86400 --hints

test: debian $(VENV)/tested lint
	$(BIN)/python -m pytest -q

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: debian $(VENV)/tested
	$(BIN)/python bench/run.py $(BENCH)

# As root the Debian packages are installed where they are missing; otherwise the tests say what they lack.
debian:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=""; \
	  for name in $(DEBIAN); do dpkg -s $$name >/dev/null 2>&1 || missing="$$missing $$name"; done; \
	  if [ -n "$$missing" ]; then echo "installing:$$missing"; apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi; fi

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[all]'
	@touch $@

$(VENV)/tested: setup.cfg $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[all,test]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
