"""The configuration: defaults, then the TOML file, then flags; one frozen dataclass a section (sections.py).

What a setting is stands in one place, so that the file, the flags, the template and the printed configuration cannot
drift apart.
A value that is wrong is a ConfigError of one line: which file or flag, which key, what value, what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tcppc import clock, hostname, tables
from tcppc.problems import Misuse
from tcppc.sections import Action, Actions, Capture, Files, Limits, Metrics, Personas, Rules, Tcppc, Watch
from tcppc.text import named
from tcppc.values import port_list, text
from tcppc.values import ports as port_ranges


class ConfigError(Misuse, ValueError):
    """One line for the person who wrote the configuration."""


@dataclass(frozen=True)
class Config:
    """The whole; `source` is the file it was read from, empty for none."""

    tcppc: Tcppc = field(default_factory=Tcppc)
    capture: Capture = field(default_factory=Capture)
    rules: Rules = field(default_factory=Rules)
    personas: Personas = field(default_factory=Personas)
    limits: Limits = field(default_factory=Limits)
    files: Files = field(default_factory=Files)
    watch: Watch = field(default_factory=Watch)
    metrics: Metrics = field(default_factory=Metrics)
    actions: Actions = field(default_factory=Actions)
    action: tuple[Action, ...] = ()  # tables [[action]]
    source: str = ""

    @property
    def tls_mode(self) -> str:
        """off, on or auto, decided."""
        return self.capture.tls or ("on" if self.tcppc.x509Cert else "auto")

    @property
    def sensor(self) -> str:
        return named(self.capture.sensor) or hostname.name()


SECTIONS: dict[str, type] = {
    "tcppc": Tcppc,
    "capture": Capture,
    "rules": Rules,
    "personas": Personas,
    "limits": Limits,
    "files": Files,
    "watch": Watch,
    "metrics": Metrics,
    "actions": Actions,
}
ACTION = "action"  # an array of tables, each an Action

# A flag's value with the name that errors show: {("tcppc", "port"): ("-p", "12345")}
Overrides = Mapping[tuple[str, str], tuple[str, Any]]


def load(
    path: str = "",
    overrides: Overrides | None = None,
    more: Iterable[tuple[str, Mapping[str, Any]]] = (),
) -> Config:
    """The effective configuration; ConfigError for anything that is not sound in itself. `more` are actions of flags:
    (flag, settings)."""
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    ports: list[tuple[str, str]] = []
    found = _tables(path) if path else {}
    actions = _actions(path, found.pop(ACTION, []))
    for flag, given in more:
        converted = {key: _convert(Action, key, value, f"{flag} {_shown(value)}") for key, value in given.items()}
        actions.append(Action(**converted))
    for section, key, value in _file_values(path, found):
        if section == "personas" and key not in known(section):
            ports.append(_persona_ports(path, key, value))
            continue
        values[section][key] = _convert(SECTIONS[section], key, value, f"{path}: [{section}] {key} = {_shown(value)}")
    for (section, key), (flag, value) in (overrides or {}).items():
        values[section][key] = _convert(SECTIONS[section], key, value, f"{flag} {_shown(value)}")
    values["personas"]["ports"] = tuple(ports)
    sections = {name: kind(**values[name]) for name, kind in SECTIONS.items()}
    config = Config(**sections, action=tuple(actions), source=path)
    _check_together(config, path or "the command line")
    return config


def _tables(path: str) -> dict[str, Any]:
    try:
        return tables.read(path)
    except tables.TableError as problem:
        hint = "" if "TOML" in str(problem) else "; -c takes a TOML file"
        raise ConfigError(f"{path}: {problem}{hint}") from None


def _actions(path: str, given: Any) -> list[Action]:
    if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
        raise ConfigError(f"{path}: [{ACTION}] is one table; expected [[{ACTION}]], as many as there are actions")
    found = []
    for number, table in enumerate(given, 1):
        values = {}
        for key, value in table.items():
            if key not in known(ACTION):
                raise ConfigError(
                    f"{path}: [[{ACTION}]] number {number} has no setting {_name(key)}{_like(key, known(ACTION))}"
                )
            where = f"{path}: [[{ACTION}]] number {number}: {key} = {_shown(value)}"
            values[key] = _convert(Action, key, value, where)
        found.append(Action(**values))
    return found


def _file_values(path: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for section, table in given.items():
        if section not in SECTIONS or not isinstance(table, dict):
            raise ConfigError(f"{path}: [{_name(section)}] is no section{_like(section, SECTIONS)}")
        for key, value in table.items():
            if key not in known(section) and not (section == "personas" and key[:1] in "0123456789tu"):
                raise ConfigError(f"{path}: [{section}] has no setting {_name(key)}{_like(key, known(section))}")
            yield section, key, value


def known(section: str) -> list[str]:
    """Names of a section's settings, in their order."""
    return [item.name for item in fields(Action if section == ACTION else SECTIONS[section]) if item.metadata]


def _persona_ports(path: str, key: str, value: Any) -> tuple[str, str]:
    """A line of the table of personas."""
    where = f"{path}: [personas] {_shown(key)} = {_shown(value)}"
    proto, slash, numbers = key.rpartition("/")
    try:
        if proto not in ("tcp", "udp") and slash:
            raise ValueError('ports such as "21", "tcp/2000-2999" or "udp/111"')
        if not port_list(numbers):
            raise ValueError('ports such as "21", "tcp/2000-2999" or "udp/111"')
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


def _name(key: str) -> str:
    return key if len(key) <= 80 else f"{key[:77]}..."


def _shown(value: Any) -> str:
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _convert(kind: type, key: str, value: Any, where: str) -> Any:
    convert = next(item for item in fields(kind) if item.name == key).metadata["convert"]
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
    if not config.capture.tcp and not config.capture.udp and not config.watch.interface:
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
    for action in config.action:
        given = {key: getattr(action, key) for key in known(ACTION)}
        lines += [f"[[{ACTION}]]", *(f"{key} = {_listed(value)}" for key, value in given.items()), ""]
    return "\n".join(lines)


def _listed(value: Any) -> str:
    """As `toml_value`; a list of one stays a list: a command of one word is no shell line."""
    return f"[{', '.join(map(toml_value, value))}]" if isinstance(value, tuple) else toml_value(value)


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
