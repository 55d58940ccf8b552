"""The sections of the configuration: one frozen dataclass each, a field a setting, with its default, its converter and
the words that `tcppc check` and conf/tcppc.toml show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tcppc import records
from tcppc.values import (
    Converter,
    choice,
    command,
    duration,
    free_space,
    interfaces,
    listen,
    names_of,
    networks,
    port_list,
    size,
    ssh_ports,
    switch,
    text,
    texts,
    watched,
    whole,
)

MIB = 1 << 20
_span = duration  # where a setting of that name hides it
GIB = 1 << 30


def setting(default: Any, convert: Converter, about: str) -> Any:
    """A field with its converter and what it is for."""
    return field(default=default, metadata={"convert": convert, "about": about})


@dataclass(frozen=True)
class Tcppc:
    """What tcppc-go's file has, with its names; a file of tcppc-go works unchanged."""

    host: tuple[str, ...] = setting(
        ("0.0.0.0",),
        texts,
        'addresses or names to listen on, one or a list; "::" alone takes IPv4 too; a link-local address has its '
        'interface, as "fe80::1%eth0"',
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
    ssh: str = setting(
        "", ssh_ports, 'ssh\'s ports, such as "22,2222", or "none"; empty: those found, or 22 where none is found'
    )


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
        0,
        whole(0, 1 << 20),
        "of them from one IPv4 address or IPv6 /64; 0: half of sessions. From a /24 or /48 seven eighths",
    )
    session_bytes: int = setting(16 * MIB, size(0), "bytes kept of one session; what comes after is counted")
    session_payloads: int = setting(65536, whole(1, 1 << 24), "payloads kept of one session")
    memory: int = setting(
        256 * MIB, size(64 * 1024), "bytes of payload in memory: open sessions and what waits for the disk"
    )
    spill: int = setting(
        4 * GIB, size(0), "bytes of large sessions in a temporary file beside the data files until they end; 0: none"
    )
    stop: float = setting(
        0, _span(0, 3600), "seconds that a stop may take; 0: 60 where systemd waits for it, 8 elsewhere"
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
    captures_bytes: int = setting(
        256 * MIB, size(0), "a captures log that reaches this becomes NAME.1, in place of the one before; 0: no bound"
    )
    logtype: str = setting("single", choice("single", "multi"), "thp's: one line a session in captures, or several")
    session_dir: str = setting("", text, "thp's: folder for a file a session with its bytes as received; empty: none")
    session_dir_bytes: int = setting(
        GIB, size(0), "what the files of session_dir may take of the disk, oldest go first; 0: no bound"
    )
    session_dir_files: int = setting(
        100_000, whole(0, 1 << 30), "how many files session_dir may have, oldest go first; 0: no bound"
    )
    file_bytes: int = setting(
        4 * GIB, size(0), "a data file that reaches this is followed by NAME.1, NAME.2…; 0: no bound"
    )
    compress: str = setting("off", choice("off", "gzip", "zstd"), "closed data files are compressed")
    keep_bytes: int = setting(0, size(0), "closed data files kept, oldest go first; 0: all")
    reserve: str | int = setting(
        "",
        free_space,
        'free space that stays on the disk, else the oldest closed files go: a size, or a share such as "5%"; 0: none; '
        "empty: 5%, but 1 to 10 GiB, and at most a tenth of the disk",
    )


@dataclass(frozen=True)
class Watch:
    """The SYN watch: who knocks, at closed and filtered ports too."""

    interface: tuple[str, ...] = setting(
        (), watched, 'interfaces to watch, one or a list, such as "eth0"; "any" is all of them; none: no watch'
    )
    address: tuple[str, ...] = setting(
        (), networks, "addresses or networks, one or a list, that are this host's own beside those found on it"
    )
    record: str = setting(
        "all", choice("all", "scans", "off"), "what goes to the data file: each SYN and all scans, scans alone, nothing"
    )
    udp: bool = setting(True, switch, "find UDP scans too")
    ports: int = setting(3, whole(0, 64), "different ports of one host that make a port scan; 0: none does")
    hosts: int = setting(10, whole(0, 64), "different hosts, one port of each, that make a sweep; 0: none does")
    window: float = setting(60, duration(1, 3600), "seconds in which they come from one source")
    slow_ports: int = setting(10, whole(0, 64), "the same for slow port scans; 0: none is looked for")
    slow_hosts: int = setting(20, whole(0, 64), "the same for slow sweeps; 0: none is looked for")
    slow_window: float = setting(6 * 3600, duration(60, 7 * 86400), "seconds in which those of a slow scan come")
    sources: int = setting(1 << 18, whole(1024, 1 << 24), "sources remembered, who was silent longest goes first")
    memory: int = setting(
        64 * MIB,
        size(MIB, 64 * GIB),
        "bytes of all that is remembered, of all interfaces together; the same goes first",
    )


@dataclass(frozen=True)
class Metrics:
    """Numbers for Prometheus."""

    listen: str = setting(
        "", listen, 'address for /metrics and /healthz, such as "127.0.0.1:2112"; empty: none. Keep strangers from it'
    )


@dataclass(frozen=True)
class Actions:
    """What all actions go by."""

    allow: tuple[str, ...] = setting(
        (), networks, "networks that are never acted upon, a list; this host, its gateways and resolvers never are"
    )
    concurrency: int = setting(8, whole(1, 256), "commands and messages at once")
    queue: int = setting(1000, whole(1, 100_000), "of them waiting; what is over is dropped and counted")
    timeout: float = setting(30, duration(0.1, 86400), "seconds a command may take; then its process group is ended")
    blocks: int = setting(65536, whole(1, 1 << 20), "networks blocked at once, of each family and scope")
    blocks_per_hour: int = setting(1000, whole(1, 1 << 20), "networks newly blocked within an hour")


MOMENTS = ("syn", "connect", "payload", "scan", "end")


@dataclass(frozen=True)
class Action:
    """One table [[action]]."""

    name: str = setting("", text, "what it is called in the log; empty: its number")
    on: tuple[str, ...] = setting(("connect",), names_of(*MOMENTS), "one or a list of syn, connect, payload, scan, end")
    ports: str = setting("", port_list, 'only these ports touched, such as "23,8000-8999"; empty: all')
    proto: tuple[str, ...] = setting((), names_of("tcp", "tls", "udp"), "only these of tcp, tls, udp; none: all")
    sources: tuple[str, ...] = setting((), networks, "only from these networks; none: all")
    match: str = setting("", text, "only where a payload matches this regular expression (RE2's syntax)")
    command: str | tuple[str, ...] = setting("", command, "a shell line, or a list of arguments run without a shell")
    webhook: str = setting("", text, "URL that gets the record as JSON by POST")
    syslog: str = setting("", text, "/dev/log or HOST:PORT (UDP) that gets it as a message of RFC 5424")
    block: float = setting(0, duration(0, 366 * 86400), "seconds that the source is blocked; 0: it is not")
    block_scope: str = setting(
        "host", choice("host", "all"), "host: from everything but the sensor; all: from the sensor too"
    )
    once_per: float = setting(0, duration(0, 30 * 86400), "seconds in which the same source acts once; 0: each time")
    per: str = setting(
        "source",
        choice("source", "network", "source+port", "network+port"),
        "what is the same: an address (IPv6: /64), its /24 (IPv6: /48), either with the port touched",
    )
    digest: float = setting(0, duration(0, 7 * 86400), "seconds that events are gathered for one call with the list")
    timeout: float = setting(0, duration(0, 86400), "seconds its command may take; 0: as [actions] says")
    dry_run: bool = setting(False, switch, "only log what would have been done")
