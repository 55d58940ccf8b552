"""FTP (RFC 959, 2389, 2428, 4217) as vsftpd answers. Nothing is connected to: PORT and EPRT are refused.

PASV and EPSV name a port of this sensor; who calls there next from the same source is served by `Data`, which says what
LIST and RETR ask for, and hears what STOR sends, as a session of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tcppc.personas.base import LineTalk, Place, Talk
from tcppc.personas.identity import Identity
from tcppc.personas.registry import high_port
from tcppc.personas.tree import Tree, TreeError, absolute, long_line

# What a second connection that may never come holds: a listing of all that one session can make is no longer.
MOST_PENDING = 64 << 10


class Data(Talk):
    """The second connection. `push` is called from the first one's thread, before or after this one is there."""

    name = "ftp-data"
    about = "the data connection of ftp"

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._lock = threading.Lock()
        self._deliver: Callable[[bytes], None] | None = None
        self._pending: bytes | None = None

    def attach(self, deliver: Callable[[bytes], None]) -> None:
        """This connection is there: `deliver` says something on it and ends it."""
        with self._lock:
            self._deliver, pending = deliver, self._pending
        if pending is not None:
            deliver(pending)

    def push(self, data: bytes) -> None:
        with self._lock:
            deliver, self._pending = self._deliver, data[:MOST_PENDING]
        if deliver:
            deliver(data)


class Ftp(LineTalk):
    """A login that half of all get through, and a small tree."""

    name = "ftp"
    about = "FTP with login, passive transfers, AUTH TLS and a small tree; what is stored is kept as a session"
    speaks_first = True
    can_starttls = True

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._tree = Tree(identity)
        self._folder = "/"
        self._user = b""
        self._in = False
        self._data: Data | None = None
        self._from = ""

    def held(self) -> int:
        return super().held() + self._tree.held

    def greet(self) -> bytes:
        return f"220 {self.identity.ftp}\r\n".encode()

    def line(self, line: bytes) -> bytes:
        verb, _, rest = line.partition(b" ")
        verb = verb.upper()
        if verb in _PLAIN:
            return _PLAIN[verb]
        if verb == b"QUIT":
            self.done = True
            return b"221 Goodbye.\r\n"
        if verb in (b"USER", b"PASS", b"AUTH"):
            return {b"USER": self._user_is, b"PASS": self._password_is, b"AUTH": self._auth}[verb](rest)
        if not self._in:
            return b"530 Please login with USER and PASS.\r\n"
        command = _COMMANDS.get(verb)
        return command(self, rest.decode("utf-8", "surrogateescape")) if command else b"500 Unknown command.\r\n"

    def _user_is(self, rest: bytes) -> bytes:
        self._user, self._in = rest, False
        return b"331 Please specify the password.\r\n"

    def _password_is(self, rest: bytes) -> bytes:
        if not self._user:
            return b"503 Login with USER first.\r\n"
        self.findings.tried(self._user, rest)
        anonymous = self._user.lower() in (b"anonymous", b"ftp")
        self._in = anonymous or self.identity.admits(self._user.decode("latin-1"), rest.decode("latin-1"))
        return b"230 Login successful.\r\n" if self._in else b"530 Login incorrect.\r\n"

    def _auth(self, rest: bytes) -> bytes:
        if not self.can_starttls or self.secure:
            return b"530 Please login with USER and PASS.\r\n"
        if rest.upper() not in (b"TLS", b"SSL", b"TLS-C"):
            return b"504 Unknown AUTH type.\r\n"
        self.starttls = True
        return b"234 Proceed with negotiation.\r\n"

    def _path(self, rest: str) -> str:
        return absolute(rest, self._folder)

    def _pwd(self, rest: str) -> bytes:
        return f'257 "{self._folder}" is the current directory\r\n'.encode("utf-8", "surrogateescape")

    def _cwd(self, rest: str) -> bytes:
        try:
            self._tree.names(self._path(rest))
        except TreeError:
            return b"550 Failed to change directory.\r\n"
        self._folder = self._path(rest)
        return b"250 Directory successfully changed.\r\n"

    def _cdup(self, rest: str) -> bytes:
        return self._cwd("..")

    def _await(self) -> int:
        """A port for the data connection."""
        self._data = Data(self.identity, self.place)
        port = high_port(self.place)
        self.place.expect(port, self._data)
        return port

    def _pasv(self, rest: str) -> bytes:
        if ":" in self.place.dst:
            return b"550 Permission denied.\r\n"  # an IPv6 address does not fit
        port = self._await()
        numbers = ",".join([*self.place.dst.split("."), str(port >> 8), str(port & 255)])
        return f"227 Entering Passive Mode ({numbers}).\r\n".encode()

    def _epsv(self, rest: str) -> bytes:
        if rest.upper() == "ALL":
            return b"200 EPSV ALL ok.\r\n"
        return f"229 Entering Extended Passive Mode (|||{self._await()}|)\r\n".encode()

    def _list(self, rest: str, long: bool = True) -> bytes:
        data, self._data = self._data, None
        if data is None:
            return b"425 Use PORT or PASV first.\r\n"
        path = self._path(" ".join(word for word in rest.split() if not word.startswith("-")))
        try:
            names = self._tree.names(path)
        except TreeError:
            names = []
        nodes = [(name, self._tree.get(absolute(name, path))) for name in names]
        lines = [long_line(name, node, self.place.now) if long else name for name, node in nodes]
        data.push("".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogateescape"))
        return b"150 Here comes the directory listing.\r\n226 Directory send OK.\r\n"

    def _nlst(self, rest: str) -> bytes:
        return self._list(rest, long=False)

    def _retr(self, rest: str) -> bytes:
        data, self._data = self._data, None
        if data is None:
            return b"425 Use PORT or PASV first.\r\n"
        try:
            node = self._tree.get(self._path(rest))
        except TreeError:
            return b"550 Failed to open file.\r\n"
        if node.data is None or node.mode & 0o004 == 0:
            return b"550 Failed to open file.\r\n"
        data.push(node.data)
        return b"150 Opening BINARY mode data connection (%d bytes).\r\n226 Transfer complete.\r\n" % len(node.data)

    def _stor(self, rest: str) -> bytes:
        data, self._data = self._data, None
        if data is None:
            return b"425 Use PORT or PASV first.\r\n"
        try:
            self._tree.write(self._path(rest), b"", self.place.now)
        except TreeError:
            return b"553 Could not create file.\r\n"
        # The bytes come on the other connection, and are its session's payload.
        return b"150 Ok to send data.\r\n226 Transfer complete.\r\n"

    def _size(self, rest: str) -> bytes:
        node = self._tree.nodes.get(self._path(rest))
        if node is None or node.data is None:
            return b"550 Could not get file size.\r\n"
        return b"213 %d\r\n" % node.length

    def _mkd(self, rest: str) -> bytes:
        try:
            self._tree.make(self._path(rest), self.place.now)
        except TreeError:
            return b"550 Create directory operation failed.\r\n"
        return f'257 "{self._path(rest)}" created\r\n'.encode("utf-8", "surrogateescape")

    def _dele(self, rest: str) -> bytes:
        try:
            self._tree.remove(self._path(rest))
        except TreeError:
            return b"550 Delete operation failed.\r\n"
        return b"250 Delete operation successful.\r\n"

    def _rmd(self, rest: str) -> bytes:
        try:
            self._tree.remove(self._path(rest), deep=True)
        except TreeError:
            return b"550 Remove directory operation failed.\r\n"
        return b"250 Remove directory operation successful.\r\n"

    def _rnfr(self, rest: str) -> bytes:
        if self._path(rest) not in self._tree.nodes:
            return b"550 RNFR command failed.\r\n"
        self._from = self._path(rest)
        return b"350 Ready for RNTO.\r\n"

    def _rnto(self, rest: str) -> bytes:
        source, self._from = self._from, ""
        node = self._tree.nodes.get(source)
        if node is None or node.data is None:
            return b"550 Rename failed.\r\n"
        try:
            self._tree.write(self._path(rest), node.data, self.place.now)
            self._tree.remove(source)
        except TreeError:
            return b"550 Rename failed.\r\n"
        return b"250 Rename successful.\r\n"


_FEATURES = (
    " AUTH TLS",
    " EPRT",
    " EPSV",
    " MDTM",
    " PASV",
    " PBSZ",
    " PROT",
    " REST STREAM",
    " SIZE",
    " TVFS",
    " UTF8",
)
_PLAIN = {
    b"FEAT": ("211-Features:\r\n" + "".join(f"{name}\r\n" for name in _FEATURES) + "211 End\r\n").encode(),
    b"SYST": b"215 UNIX Type: L8\r\n",
    b"NOOP": b"200 NOOP ok.\r\n",
    b"OPTS": b"200 Always in UTF8 mode.\r\n",
    b"PBSZ": b"200 PBSZ set to 0.\r\n",
    b"HELP": b"214 Help OK.\r\n",
    b"CLNT": b"200 Noted.\r\n",
}
_COMMANDS: dict[bytes, Callable[[Ftp, str], bytes]] = {
    b"PWD": Ftp._pwd, b"XPWD": Ftp._pwd, b"CWD": Ftp._cwd, b"CDUP": Ftp._cdup, b"PASV": Ftp._pasv, b"EPSV": Ftp._epsv,
    b"LIST": Ftp._list, b"NLST": Ftp._nlst, b"RETR": Ftp._retr, b"STOR": Ftp._stor, b"APPE": Ftp._stor,
    b"STOU": Ftp._stor, b"SIZE": Ftp._size, b"MKD": Ftp._mkd, b"XMKD": Ftp._mkd, b"DELE": Ftp._dele, b"RMD": Ftp._rmd,
    b"RNFR": Ftp._rnfr, b"RNTO": Ftp._rnto,
    b"PROT": lambda ftp, rest: b"200 PROT now Clear.\r\n" if rest in ("C", "c") else b"536 PROT P not supported.\r\n",
    b"PORT": lambda ftp, rest: b"500 Illegal PORT command.\r\n",
    b"EPRT": lambda ftp, rest: b"500 Illegal EPRT command.\r\n",
    b"TYPE": lambda ftp, rest: b"200 Switching to %s mode.\r\n" % (b"Binary" if rest[:1] in "Ii" else b"ASCII"),
    b"MODE": lambda ftp, rest: b"200 Mode set to S.\r\n",
    b"STRU": lambda ftp, rest: b"200 Structure set to F.\r\n",
    b"REST": lambda ftp, rest: b"350 Restart position accepted (0).\r\n",
    b"ABOR": lambda ftp, rest: b"225 No transfer to ABOR.\r\n",
    b"MDTM": lambda ftp, rest: b"550 Could not get file modification time.\r\n",
    b"SITE": lambda ftp, rest: b"500 Unknown SITE command.\r\n",
    b"STAT": lambda ftp, rest: b"211 End of status\r\n",
    b"ALLO": lambda ftp, rest: b"202 ALLO command ignored.\r\n",
    b"ACCT": lambda ftp, rest: b"502 ACCT not implemented.\r\n",
}  # fmt: skip

TALK = Ftp
