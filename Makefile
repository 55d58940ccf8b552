# make run   set up and start the sensor          make test   linter, type checker, tests
# make bench speed and memory, as one table       make clean  remove what the others made
# make soak  half an hour of strangers and faults, each byte accounted for: make soak SOAK="--minutes 5 --seed 42"
# make install, make uninstall: PREFIX, SYSCONFDIR and DESTDIR may be given
# PYTHON, PORT and FILE may be given: make run PORT=2323

PYTHON ?= python3
PORT ?= 12345
FILE ?= data/tcppc-%Y%m%d.jsonl
VENV := .venv
BIN := $(VENV)/bin
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
EXTRAS ?= all
# Tests wait more than they work.
PYTEST ?= -n 3
LIB := $(PREFIX)/lib/tcppc
UNITS := $(PREFIX)/lib/systemd/system
DOC := $(PREFIX)/share/doc/tcppc
MAN := $(PREFIX)/share/man/man1
# Real clients and tools that the tests use.
DEBIAN := bind9-dnsutils curl default-mysql-client dropbear-bin freetds-bin gcc groff-base hping3 iproute2 \
  iptables lftp libc6-dev libssl-dev logrotate masscan ncat netcat-openbsd netcat-traditional nftables nmap \
  ntpdate openssh-client openssl procps prometheus redis-tools rpcbind snmp socat systemd tcpflow telnet tftp-hpa \
  tshark util-linux wireshark-common

.PHONY: run test lint bench soak install uninstall clean debian

run: $(VENV)/installed
	@$(BIN)/tcppc -p $(PORT) -w '$(FILE)' -T 86400 --hints

test: debian $(VENV)/tested lint
	$(BIN)/python -m pytest -q $(PYTEST)

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: debian $(VENV)/tested
	$(BIN)/python bench/run.py $(BENCH)
	$(BIN)/python bench/flows.py $(BENCH_FLOWS)

soak: debian $(VENV)/tested
	$(BIN)/python -m tests.soak $(SOAK)

# The package with all it needs stands in a folder of its own, so that it meets no other Python program's packages.
# A configuration that is there stays; the new template is put beside it.
install: $(VENV)/bin/python
	rm -rf "$(DESTDIR)$(LIB)"
	install -d "$(DESTDIR)$(LIB)" "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(UNITS)" "$(DESTDIR)$(DOC)" "$(DESTDIR)$(MAN)" \
	  "$(DESTDIR)$(SYSCONFDIR)/init.d" "$(DESTDIR)$(SYSCONFDIR)/logrotate.d"
	$(BIN)/python -m pip install -q --disable-pip-version-check --target "$(DESTDIR)$(LIB)" '.$(if $(EXTRAS),[$(EXTRAS)])'
	rm -rf "$(DESTDIR)$(LIB)/bin"
	printf '%s\n' "#!$$($(BIN)/python -c 'import sys; print(sys._base_executable)') -I" 'import sys' '' \
	  'sys.path.insert(0, "$(LIB)")' 'from tcppc.cli import main' '' 'sys.exit(main())' > "$(DESTDIR)$(PREFIX)/bin/tcppc"
	chmod 755 "$(DESTDIR)$(PREFIX)/bin/tcppc"
	for name in tcppc.service tcppc.socket; do \
	  sed 's#/usr/local#$(PREFIX)#; s#/etc/tcppc.toml#$(SYSCONFDIR)/tcppc.toml#' systemd/$$name > "$(DESTDIR)$(UNITS)/$$name"; done
	sed 's#/usr/local#$(PREFIX)#; s#=/etc/#=$(SYSCONFDIR)/#' conf/tcppc.init > "$(DESTDIR)$(SYSCONFDIR)/init.d/tcppc"
	chmod 755 "$(DESTDIR)$(SYSCONFDIR)/init.d/tcppc"
	install -m 644 conf/tcppc.logrotate "$(DESTDIR)$(SYSCONFDIR)/logrotate.d/tcppc"
	sed 's#/usr/local#$(PREFIX)#; s#/etc/#$(SYSCONFDIR)/#' docs/tcppc.1 > "$(DESTDIR)$(MAN)/tcppc.1"
	install -m 644 README.md CHANGELOG.md LICENSE docs/*.md conf/*.json conf/prometheus/*.yml \
	  conf/grafana/*.json systemd/no-capabilities.conf "$(DESTDIR)$(DOC)"
	sed 's/^tcpFileFmt = ""/tcpFileFmt = "tcppc-%Y%m%d.jsonl"/; s/^rotInt = 0/rotInt = 86400/' conf/tcppc.toml \
	  > "$(DESTDIR)$(DOC)/tcppc.toml"
	test -e "$(DESTDIR)$(SYSCONFDIR)/tcppc.toml" || \
	  install -m 644 "$(DESTDIR)$(DOC)/tcppc.toml" "$(DESTDIR)$(SYSCONFDIR)/tcppc.toml"

# Configuration and data stay.
uninstall:
	rm -rf "$(DESTDIR)$(LIB)" "$(DESTDIR)$(DOC)"
	rm -f "$(DESTDIR)$(PREFIX)/bin/tcppc" "$(DESTDIR)$(UNITS)/tcppc.service" "$(DESTDIR)$(UNITS)/tcppc.socket" \
	  "$(DESTDIR)$(MAN)/tcppc.1" "$(DESTDIR)$(SYSCONFDIR)/init.d/tcppc" "$(DESTDIR)$(SYSCONFDIR)/logrotate.d/tcppc"

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
