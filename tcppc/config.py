"""The configuration: defaults, then the TOML file, then flags; one frozen dataclass a section.

Each setting is one field: its default, its converter and the words that `tcppc check` and conf/tcppc.toml show
are its metadata, so that the file, the flags, the template and the printed configuration cannot drift apart.
A value that is wrong is a ConfigError of one line: which file or flag, which key, what value, what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import toml

from tcppc import clock, records
from tcppc.values import (
    Converter,
    choice,
    duration,
    interfaces,
    networks,
    port_list,
    size,
    switch,
    text,
    texts,
    whole,
)
from tcppc.values import ports as port_ranges

MIB = 1 << 20
GIB = 1 << 30


class ConfigError(ValueError):
    """One line for the person who wrote the configuration."""


def setting(default: Any, convert: Converter, about: str) -> Any:
    """A field with its converter and what it is for."""
    return field(default=default, metadata={"convert": convert, "about": about})


@dataclass(frozen=True)
class Tcppc:
    """What tcppc-go's file has, with its names; a file of tcppc-go works unchanged."""

    host: tuple[str, ...] = setting(
        ("0.0.0.0",), texts, 'addresses or names to listen on, one or a list; "::" alone takes IPv4 too'
    )
    port: int = setting(12345, whole(0, 65535), "TCP and UDP port to listen on; 0 takes a free one")
    timeout: float = setting(60, duration(0.01, 86400), "seconds without a byte after which a TCP session is closed")
    tcpFileFmt: str = setting("", text, "data file, with strftime(3) directives; empty: sessions are not kept")
    rotInt: int = setting(0, whole(0, 366 * 86400), "seconds between new data files; 0: one file")
    rotOffset: int = setting(
        0, whole(-366 * 86400, 366 * 86400), "seconds that the change of files comes after the interval's start"
    )
    logFile: str = setting("", text, "log file; empty: standard error")
    timezone: str = setting(
        "Local", text, "zone of data file names and time stamps: Local or a name of the tz database"
    )
    maxFdNum: int = setting(0, whole(0, 1 << 30), "file descriptors to ask for; 0: as many as the hard limit gives")
    x509Cert: str = setting("", text, "TLS certificate file (PEM); goes with x509Key")
    x509Key: str = setting("", text, "TLS key file (PEM)")


@dataclass(frozen=True)
class Capture:
    """What is listened for, and how."""

    tcp: bool = setting(True, switch, "serve TCP")
    udp: bool = setting(True, switch, "serve UDP")
    tls: str = setting(
        "",
        choice("", "off", "on", "auto"),
        "off, on, or auto (a ClientHello is recognised); empty: on with x509Cert, else auto",
    )
    sensor: str = setting("", text, "this sensor's name in every record; empty: the host's name")
    quiet: bool = setting(False, switch, "no log lines for sessions")
    state_dir: str = setting(
        "", text, "where the self-made TLS certificate is kept; empty: /var/lib/tcppc or ~/.local/state/tcppc"
    )
    proxy_protocol: tuple[str, ...] = setting(
        (), networks, "load balancers, as networks, whose PROXY protocol header is believed; a list, none by default"
    )
    rules: bool = setting(
        False, switch, "put the rules of [rules] in place at the start and take them away at the stop"
    )
    udp_buffer: int = setting(64 * MIB, size(4096, 1 << 30), "bytes of kernel buffer for datagrams not read yet")


@dataclass(frozen=True)
class Rules:
    """How every port comes to the one that is listened on (tcppc rules)."""

    interface: tuple[str, ...] = setting(
        (), interfaces, 'interfaces that strangers come by, one or a list, such as "eth0"'
    )
    address: tuple[str, ...] = setting(
        (), networks, "addresses or networks that are the sensor's, one or a list; none: all of this host's"
    )
    excepted: str = setting("", port_list, 'ports that are left alone, such as "25,9100-9200"; ssh is found by itself')
    mode: str = setting(
        "tproxy",
        choice("tproxy", "redirect"),
        "how: tproxy, or redirect (NAT) for a kernel without it; the sensor heeds it",
    )
    mark: int = setting(29808, whole(1, 0xFFFFFFFF), "mark of the packets that go to the sensor")
    table: int = setting(29808, whole(1, 0xFFFFFFFF), "routing table where marked packets are local")
    take_over: bool = setting(False, switch, "take also the ports on which this host listens, but not ssh")


@dataclass(frozen=True)
class Personas:
    """What is said back. Any other key is ports, such as "21", "2000-2999" or "udp/111", and its value a persona."""

    default: str = setting(
        "silent", text, "persona where no port of this table says otherwise; tcppc personas lists them"
    )
    folder: str = setting("", text, "folder of personas of your own, a TOML file each (docs/personas.md)")
    ports: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Limits:
    """What strangers may use."""

    duration: float = setting(3600, duration(0.01, 30 * 86400), "seconds after which a session is closed however busy")
    sessions: int = setting(
        32768,
        whole(1, 1 << 20),
        "sessions open at once, each with its thread; less where descriptors or threads run out sooner",
    )
    sessions_per_source: int = setting(
        0, whole(0, 1 << 20), "of them from one IPv4 address or IPv6 /64; 0: half of sessions"
    )
    session_bytes: int = setting(16 * MIB, size(0), "bytes kept of one session; what comes after is counted")
    session_payloads: int = setting(65536, whole(1, 1 << 24), "payloads kept of one session")
    memory: int = setting(
        256 * MIB, size(64 * 1024), "bytes of payload in memory: open sessions and what waits for the disk"
    )


@dataclass(frozen=True)
class Files:
    """The data files."""

    format: str = setting("full", choice(*records.FORMATS), "full, or classic: tcppc-go's three keys alone")
    record: str = setting(
        "sessions",
        choice("sessions", "events"),
        "sessions: a line at each one's end; events: a line for its start, each payload and its end, as they happen",
    )
    captures: str = setting("", text, "thp's log of sessions, a file beside the data files; empty: none")
    logtype: str = setting("single", choice("single", "multi"), "thp's: one line a session in captures, or several")
    session_dir: str = setting("", text, "thp's: folder for a file a session with its bytes as received; empty: none")
    file_bytes: int = setting(
        4 * GIB, size(0), "a data file that reaches this is followed by NAME.1, NAME.2…; 0: no bound"
    )
    compress: str = setting("off", choice("off", "gzip", "zstd"), "closed data files are compressed")
    keep_bytes: int = setting(0, size(0), "closed data files kept, oldest go first; 0: all")


@dataclass(frozen=True)
class Config:
    """The whole; `source` is the file it was read from, empty for none."""

    tcppc: Tcppc = field(default_factory=Tcppc)
    capture: Capture = field(default_factory=Capture)
    rules: Rules = field(default_factory=Rules)
    personas: Personas = field(default_factory=Personas)
    limits: Limits = field(default_factory=Limits)
    files: Files = field(default_factory=Files)
    source: str = ""

    @property
    def tls_mode(self) -> str:
        """off, on or auto, decided."""
        return self.capture.tls or ("on" if self.tcppc.x509Cert else "auto")

    @property
    def sensor(self) -> str:
        return self.capture.sensor or socket.gethostname()


SECTIONS: dict[str, type] = {
    "tcppc": Tcppc,
    "capture": Capture,
    "rules": Rules,
    "personas": Personas,
    "limits": Limits,
    "files": Files,
}

# A flag's value with the name that errors show: {("tcppc", "port"): ("-p", "12345")}
Overrides = Mapping[tuple[str, str], tuple[str, Any]]


def load(path: str = "", overrides: Overrides | None = None) -> Config:
    """The effective configuration; ConfigError for anything that is not sound in itself."""
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    ports: list[tuple[str, str]] = []
    for section, key, value in _file_values(path) if path else ():
        if section == "personas" and key not in known(section):
            ports.append(_persona_ports(path, key, value))
            continue
        values[section][key] = _convert(section, key, value, f"{path}: [{section}] {key} = {_shown(value)}")
    for (section, key), (flag, value) in (overrides or {}).items():
        values[section][key] = _convert(section, key, value, f"{flag} {_shown(value)}")
    values["personas"]["ports"] = tuple(ports)
    sections = {name: kind(**values[name]) for name, kind in SECTIONS.items()}
    config = Config(**sections, source=path)
    _check_together(config, path or "the command line")
    return config


def _file_values(path: str) -> Iterator[tuple[str, str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            tables = toml.load(file)
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read: {problem.strerror}; -c takes a TOML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; -c takes a TOML file") from None
    except (toml.TomlDecodeError, IndexError, TypeError, ValueError) as problem:
        # toml 0.10 lets an IndexError or TypeError through for some broken tables.
        raise ConfigError(f"{path}: is not TOML: {' '.join(str(problem).split())}") from None
    for section, table in tables.items():
        if section not in SECTIONS or not isinstance(table, dict):
            raise ConfigError(f"{path}: [{section}] is no section{_like(section, SECTIONS)}")
        for key, value in table.items():
            if key not in known(section) and not (section == "personas" and key[:1] in "0123456789tu"):
                raise ConfigError(f"{path}: [{section}] has no setting {key}{_like(key, known(section))}")
            yield section, key, value


def known(section: str) -> list[str]:
    """Names of a section's settings, in their order."""
    return [item.name for item in fields(SECTIONS[section]) if item.metadata]


def _persona_ports(path: str, key: str, value: Any) -> tuple[str, str]:
    """A line of the table of personas."""
    where = f"{path}: [personas] {_shown(key)} = {_shown(value)}"
    proto, slash, numbers = key.rpartition("/")
    try:
        if proto not in ("tcp", "udp") and slash:
            raise ValueError('ports such as "21", "tcp/2000-2999" or "udp/111"')
        port_list(numbers)
        return key, str(text(value))
    except ValueError as problem:
        raise ConfigError(f"{where}: expected {problem}") from None


def persona_table(personas: Personas) -> dict[tuple[str, int], str]:
    """{("tcp", 21): "ftp"}; of two lines for one port the later one counts."""
    table: dict[tuple[str, int], str] = {}
    for key, name in personas.ports:
        proto, _, numbers = key.rpartition("/")
        for low, high in port_ranges(numbers):
            table |= {(proto or "tcp", port): name for port in range(low, high + 1)}
    return table


def _like(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(known)}"


def _shown(value: Any) -> str:
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _convert(section: str, key: str, value: Any, where: str) -> Any:
    convert = setting_of(section, key).metadata["convert"]
    try:
        return convert(value)
    except ValueError as problem:
        raise ConfigError(f"{where}: expected {problem}") from None


def setting_of(section: str, key: str) -> dataclasses.Field[Any]:
    """The field of one setting: default, and `convert` and `about` in its metadata."""
    return next(item for item in fields(SECTIONS[section]) if item.name == key)


def _check_together(config: Config, where: str) -> None:
    """What only several settings together can get wrong."""
    given = config.tcppc
    if bool(given.x509Cert) != bool(given.x509Key):
        have, lack = ("-C", "-K") if given.x509Cert else ("-K", "-C")
        raise ConfigError(
            f"{where}: {have} is given without {lack}: a TLS certificate needs its key, expected both or none"
        )
    if config.capture.tls == "on" and not given.x509Cert:
        raise ConfigError(
            f"{where}: TLS is on without a certificate: expected x509Cert and x509Key (-C and -K), or auto"
        )
    if not config.capture.tcp and not config.capture.udp:
        raise ConfigError(f"{where}: TCP and UDP are both disabled: there is nothing to serve")
    if config.capture.rules and not config.rules.interface:
        raise ConfigError(f"{where}: capture.rules without rules.interface: expected the interface strangers come by")
    if config.files.record == "events" and config.files.format == "classic":
        raise ConfigError(f"{where}: record = events goes with format = full: tcppc-go's record has no event lines")
    try:
        zone = clock.Zone(given.timezone)
    except ValueError as problem:
        raise ConfigError(f"{where}: timezone: {problem}; expected Local or a name such as Asia/Tokyo") from None
    if given.tcpFileFmt.endswith("/") or (given.tcpFileFmt and not zone.format(given.tcpFileFmt, 0)):
        raise ConfigError(f"{where}: tcpFileFmt {given.tcpFileFmt!r}: expected the name of a file, not of a folder")


def as_toml(config: Config) -> str:
    """The configuration as a file that `load` reads back to the same."""
    lines = []
    for name in SECTIONS:
        lines.append(f"[{name}]")
        section = getattr(config, name)
        lines += [f"{key} = {toml_value(getattr(section, key))}" for key in known(name)]
        if name == "personas":
            lines += [f"{toml_value(key)} = {toml_value(value)}" for key, value in section.ports]
        lines.append("")
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """One value as TOML; a list of one host as the plain string that tcppc-go's files have."""
    if isinstance(value, tuple):
        return toml_value(value[0]) if len(value) == 1 else f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def changed(old: Config, new: Config, names: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Which of the settings in `names` ({section: keys}) differ, as `section.key`."""
    return [
        f"{section}.{key}"
        for section, keys in names.items()
        for key in keys
        if getattr(getattr(old, section), key) != getattr(getattr(new, section), key)
    ]


def replace(config: Config, section: str, **values: Any) -> Config:
    """A copy with some settings of one section changed."""
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
