"""What a configuration asks for, built: all that can fail, once, before any of it is used.

`prepare` is for a start and for a reload alike. What it returns is adopted part by part, and nothing of that can fail.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from tcppc import acting, folders, metrics, watching
from tcppc.actions import engine
from tcppc.capture import capabilities, captures, certificate, keep, sockets, tls
from tcppc.capture.books import Books
from tcppc.capture.captures import Captures
from tcppc.capture.files import LEDGER, Naming, is_standard_output
from tcppc.capture.regular import is_regular
from tcppc.capture.terms import Terms
from tcppc.clock import Zone
from tcppc.config import Config, ConfigError, persona_table
from tcppc.log import Log
from tcppc.personas.registry import Personas
from tcppc.records import Encoder
from tcppc.values import network
from tcppc.watch import watcher


@dataclass(frozen=True)
class Prepared:
    """Everything of a configuration that has to be built."""

    config: Config
    zone: Zone
    terms: Terms
    watch: watcher.Terms
    actions: engine.Terms
    encoder: Encoder
    naming: Naming

    @property
    def for_datagrams(self) -> Personas | None:
        answers = self.terms.personas
        return answers if answers and answers.for_datagrams else None


def prepare(config: Config, say: Callable[[str], None]) -> Prepared:
    """ConfigError for what cannot be; whatever else a plug-in raises. `say` is told what there cannot be, and that all
    else goes on."""
    _check_places(config)
    answers = personas(config)
    actions = acting.terms(config)
    actions.allowed.look()
    return Prepared(
        config,
        Zone(config.tcppc.timezone),
        terms(config, tls_context(config, say), answers),
        watching.terms(config),
        actions,
        Encoder(Zone(config.tcppc.timezone), config.sensor, config.files.format),
        naming(config),
    )


def check(config: Config) -> None:
    """ConfigError for what only a look at this machine can tell: certificates, names, packages. Builds what a start
    would build, and throws it away."""
    _check_places(config)
    if config.tcppc.x509Cert:
        tls_context(config, lambda _: None)
    personas(config)
    acting.rules(config)


def _check_places(config: Config) -> None:
    """Names, packages and files: what is looked at, and not built."""
    try:
        sockets.resolve(config.tcppc.host)
        metrics.check(config)
    except sockets.ListenError as problem:
        raise ConfigError(str(problem)) from None
    if os.path.basename(config.tcppc.tcpFileFmt) == LEDGER:
        raise ConfigError(f"tcpFileFmt (-w) {config.tcppc.tcpFileFmt}: {LEDGER} is the ledger's name; expected another")
    others = {os.path.abspath(path) for path in (config.tcppc.tcpFileFmt, config.tcppc.logFile) if path}
    given = config.files.captures
    if given and (
        os.path.abspath(given) in others
        or os.path.basename(given) == LEDGER
        or (os.path.lexists(given) and not is_regular(given))
    ):
        raise ConfigError(f"files.captures (--captures) {given}: expected a file of its own, and no link to one")
    if (
        config.files.session_dir
        and os.path.exists(config.files.session_dir)
        and not os.path.isdir(config.files.session_dir)
    ):
        raise ConfigError(f"files.session_dir (--session-dir) {config.files.session_dir}: expected a folder")
    if config.files.compress == "zstd":
        try:
            import zstandard  # noqa: F401
        except ImportError:
            raise ConfigError(
                "files.compress = zstd: the package zstandard is missing: pip install 'tcppc[zstd]'"
            ) from None


def personas(config: Config) -> Personas | None:
    """What is said back, None for nothing. ConfigError for a persona that is none."""
    given = config.personas
    try:
        found = Personas(given.default, persona_table(given), given.folder, config.sensor)
    except ValueError as problem:
        where = f"{config.source}: " if config.source else ""
        raise ConfigError(f"{where}[personas] {problem}") from None
    return None if found.silent else found


def captures_of(config: Config, books: Books, log: Log) -> Captures | None:
    """thp's files, where they are asked for."""
    given = config.files
    if not given.captures and not given.session_dir:
        return None
    zone = Zone(config.tcppc.timezone)
    return Captures(given.captures, given.logtype, given.session_dir, zone, books, log, given.captures_bytes)


def keeping(config: Config, has_file: bool) -> keep.Terms:
    """What the keeper goes by. Where the sensor has no data file, none at that place is its to tend."""
    pattern, given = config.tcppc.tcpFileFmt, config.files
    streams = is_standard_output(pattern) or pattern.startswith(("/dev/", "/proc/"))
    others = (
        config.source, config.tcppc.logFile, config.tcppc.x509Cert, config.tcppc.x509Key, given.captures,
        given.captures and captures.before(given.captures),
    )  # fmt: skip
    return keep.Terms(
        pattern if has_file and not streams else "", given.compress, given.keep_bytes, given.reserve,
        given.session_dir, given.session_dir_bytes, given.session_dir_files,
        bool(config.tcppc.rotInt or given.file_bytes), frozenset(os.path.abspath(path) for path in others if path),
    )  # fmt: skip


def terms(config: Config, context: ssl.SSLContext | None, answers: Personas | None) -> Terms:
    """What sessions are served under."""
    return Terms(
        timeout=round(config.tcppc.timeout * 1e9),
        duration=round(config.limits.duration * 1e9),
        session_bytes=config.limits.session_bytes,
        session_payloads=config.limits.session_payloads,
        tls_mode=config.tls_mode,
        context=context,
        proxies=tuple(map(network, config.capture.proxy_protocol)),
        personas=answers,
    )


def tls_context(config: Config, say: Callable[[str], None]) -> ssl.SSLContext | None:
    """What TLS is answered with; None where it is off or, in mode auto, where no certificate can be had."""
    if config.tls_mode == "off" or not config.capture.tcp:
        return None
    given = config.tcppc
    if given.x509Cert:
        try:
            return tls.context([(given.x509Cert, given.x509Key)])
        except ssl.SSLError as problem:
            raise ConfigError(
                f"-C {given.x509Cert} -K {given.x509Key}: {tls.reason(problem)}; expected a PEM certificate and its key"
            ) from None
        except OSError as problem:
            raise ConfigError(
                f"-C {given.x509Cert} -K {given.x509Key}: {problem.strerror}; expected two PEM files that can be read"
            ) from None
    try:
        folder = folders.state(config.capture.state_dir)
        return tls.context(certificate.pairs(folder))
    except (folders.NoFolder, certificate.CertificateError) as problem:
        say(f"TLS is recognised but not answered: {problem}.")
    except (ssl.SSLError, OSError) as problem:
        say(
            f"TLS is recognised but not answered: the certificates in {folder}: {problem}; "
            "remove them to have new ones made."
        )
    return None


def naming(config: Config) -> Naming:
    given = config.tcppc
    return Naming(given.tcpFileFmt, given.rotInt, given.rotOffset, Zone(given.timezone), config.files.file_bytes)


def needed(prepared: Prepared) -> tuple[str, ...]:
    """Capabilities that the sensor uses, where it has them, once its sockets are open."""
    config = prepared.config
    wanted: tuple[str, ...] = capabilities.FILES
    answers = prepared.for_datagrams is not None and config.capture.udp
    blocks = any(action.block for action in config.action)
    if config.capture.rules or config.rules.mode == "redirect" or answers or blocks:
        wanted = (*wanted, "CAP_NET_ADMIN")
    return (*wanted, "CAP_NET_BIND_SERVICE") if answers else wanted
