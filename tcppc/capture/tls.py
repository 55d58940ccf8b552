"""The TLS side of a session, without sockets: bytes in, bytes out.

Who comes here are scanners and bots, old ones among them, and what counts is what they say after the handshake.
So everything OpenSSL still knows is let in, TLS 1.0 and weak ciphers included; nothing here protects a secret.
"""

from __future__ import annotations

import errno
import os
import ssl
import stat
import warnings
from collections.abc import Iterator
from importlib import resources

# A client hello, certificates that nobody asked for, and the rest of a handshake; OpenSSL has its own bound on each
# message (SSL_MAX_CERT_LIST_DEFAULT is 100 KiB). Security limit.
MOST_HANDSHAKE_BYTES = 128 * 1024
# What OpenSSL and Python hold for one open TLS session, counted against `limits.memory`. Measured: 48 kB of
# resident memory beside the thread's, with 600 TLS 1.3 sessions held open (OpenSSL 3.0, CPython 3.11).
TUNNEL_CHARGE = 48 * 1024
# One TLS record's plain text (RFC 8446 §5.1), the most that one read gives.
RECORD_BYTES = 16384
HEAD_BYTES = 5


def context(pairs: list[tuple[str, str]]) -> ssl.SSLContext:
    """A server context with these (certificate, key) files, PEM; one of each kind of key at most.

    OSError for a file that cannot be read, ssl.SSLError for one that is no PEM or a key that does not fit.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are wanted here
        made.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    # Sorted by strength, so that modern clients get ECDHE; without authentication or encryption comes last.
    made.set_ciphers("ALL:+aNULL:COMPLEMENTOFALL:@SECLEVEL=0")
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    made.options &= ~ssl.OP_NO_SSLv3
    made.num_tickets = 0  # a session that comes again is to shake hands again, and to be seen
    made.set_alpn_protocols(["http/1.1"])
    with resources.as_file(resources.files("tcppc") / "ffdhe2048.pem") as parameters:
        made.load_dh_params(str(parameters))
    for certificate, key in pairs:
        for path in (certificate, key):
            # A link is fine; a FIFO would be waited for.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise OSError(errno.EINVAL, "no regular file", path)
        # An encrypted key would make OpenSSL ask the terminal.
        made.load_cert_chain(certificate, key, password=lambda: b"")
    return made


class Tunnel:
    """One server side of TLS. `feed` what came, then `handshake` until it is True, then `read`; after each,
    `to_send` has what the client is owed. ssl.SSLError where the client is at fault."""

    def __init__(self, server: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = server.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def feed(self, data: bytes) -> None:
        """Bytes from the client; b"" for its end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def handshake(self) -> bool:
        """True when the handshake is done, False when it needs more bytes."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self) -> bytes | None:
        """Plain text of one record, b"" where the client said goodbye, None when it needs more bytes."""
        try:
            return self._object.read(RECORD_BYTES)
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def write(self, data: bytes) -> None:
        """Say this inside the tunnel, once `to_send` is sent."""
        self._object.write(data)

    def goodbye(self) -> None:
        """Put a close_notify into what is to be sent."""
        try:
            self._object.unwrap()
        except ssl.SSLError:  # it wants the client's own, which nobody waits for
            return

    def to_send(self) -> bytes:
        return self._outgoing.read()

    @property
    def unread(self) -> int:
        """How many of the bytes that were fed OpenSSL has not taken: it takes them record by record."""
        return self._incoming.pending

    @property
    def version(self) -> str | None:
        return self._object.version()

    @property
    def cipher(self) -> str | None:
        named = self._object.cipher()
        return named[0] if named else None


def _records(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """(begin, end) of each TLS record as its head says it (RFC 8446 §5.1), the end of the last beyond `data` where it
    is not whole."""
    at = 0
    while len(data) - at >= HEAD_BYTES:
        end = at + HEAD_BYTES + int.from_bytes(data[at + 3 : at + HEAD_BYTES], "big")
        yield at, end
        at = end


def drop_whole_records(data: bytearray) -> None:
    """Leave of raw bytes that begin with a record what is not whole yet."""
    whole = 0
    for _, end in _records(data):
        if end <= len(data):
            whole = end
    del data[:whole]


def since_record_before(data: bytes | bytearray, taken: int) -> int:
    """Where the record begins of which `taken` is the end, or its head's end: the last that OpenSSL has looked at."""
    begin = 0
    for at, _ in _records(data):
        if at < taken:
            begin = at
    return begin


def reason(problem: ssl.SSLError) -> str:
    """Why a handshake failed, in OpenSSL's words: `no shared cipher`."""
    words = problem.reason or str(problem)
    return words.replace("_", " ").lower()
