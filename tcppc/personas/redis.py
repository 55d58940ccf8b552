"""Redis (https://redis.io/docs/reference/protocol-spec): what is asked before something is written to a disk.

Keys are remembered for the session. CONFIG, SLAVEOF and SAVE say OK and do nothing; scripts and modules are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tcppc.personas.base import MOST_SAID, Place, Talk
from tcppc.personas.identity import Identity

MOST_ARGUMENTS = 1024
MOST_BULK = 512 << 10
MOST_COMMAND = 1 << 20
MOST_INLINE = 64 << 10
MOST_KEYS = 100
KEY_CHARGE = 200  # of one key and its value, beside their bytes
MOST_VALUE = 1024
MOST_NAMES = 16 << 10
"""Of one command: arguments, bytes of one and of all; of an inline command bytes; keys kept, bytes of each value and of
all their names."""

OK = b"+OK\r\n"
NIL = b"$-1\r\n"


class Redis(Talk):
    """A Redis without a password, as those are that strangers look for."""

    name = "redis"
    about = "Redis without a password: PING, AUTH, INFO, CONFIG, SET, SLAVEOF and the like"

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._heard = bytearray()
        self._left = 0  # arguments of a command that still lack
        self._bulk = -1  # bytes of the one that is being heard, -1 before its length
        self._size = 0
        self._words: list[bytes] = []
        self._keys: dict[bytes, bytes] = {}
        self._config = {b"dir": b"/var/lib/redis", b"dbfilename": b"dump.rdb", b"requirepass": b"", b"save": b"3600 1"}
        self._protocol = 2

    def hear(self, data: bytes) -> bytes:
        self._heard += data
        said = bytearray()
        while self._heard and not self.done and len(said) <= MOST_SAID:
            try:
                words = self._next()
            except ValueError as problem:
                self.done = True
                return bytes(said) + f"-ERR Protocol error: {problem}\r\n".encode()
            if words is None:
                break
            if words:
                said += self._run(words)
        return bytes(said)

    def held(self) -> int:
        words = self._size if self._left else 0
        return len(self._heard) + words + sum(len(name) + len(value) + KEY_CHARGE for name, value in self._keys.items())

    def _next(self) -> list[bytes] | None:
        """The words of the next command, None where more is needed. ValueError for what is no command."""
        if self._left == 0:
            if self._heard[:1] != b"*":
                end = self._heard.find(b"\n")
                if end < 0 and len(self._heard) <= MOST_INLINE:
                    return None
                if end < 0:
                    raise ValueError("too big inline request")
                words = bytes(self._heard[:end]).split()
                del self._heard[: end + 1]
                return words
            count = self._number(MOST_ARGUMENTS, "invalid multibulk length")
            if count is None:
                return None
            self._left, self._words, self._size = count, [], 0
        while self._left:
            if self._bulk < 0 and not self._begin_bulk():
                return None
            if len(self._heard) < self._bulk + 2:
                return None
            self._words.append(bytes(self._heard[: self._bulk]))
            del self._heard[: self._bulk + 2]
            self._bulk, self._left = -1, self._left - 1
        words, self._words = self._words, []
        return words

    def _begin_bulk(self) -> bool:
        """The next argument's length is there."""
        if self._heard and self._heard[:1] != b"$":
            got = chr(self._heard[0]) if 32 < self._heard[0] < 127 else " "
            raise ValueError(f"expected '$', got '{got}'")
        size = self._number(MOST_BULK, "invalid bulk length")
        if size is None:
            return False
        self._size += size
        if self._size > MOST_COMMAND:
            raise ValueError("invalid bulk length")
        self._bulk = size
        return True

    def _number(self, most: int, wrong: str) -> int | None:
        """The number in the first line, which is taken; None where the line is not whole."""
        end = self._heard.find(b"\r\n", 0, 32)
        if end < 0:
            if len(self._heard) > 32:
                raise ValueError(wrong)
            return None
        text = bytes(self._heard[1:end])
        if not re.fullmatch(rb"-?\d{1,10}", text) or not -1 <= int(text) <= most:
            raise ValueError(wrong)
        del self._heard[: end + 2]
        return max(0, int(text))

    def _run(self, words: list[bytes]) -> bytes:
        name = words[0].upper()
        command = _COMMANDS.get(name)
        if command:
            return command(self, words[1:])
        first = words[0][:64].decode("latin-1").encode("ascii", "backslashreplace")
        shown = b" ".join(b"'%s'" % word[:32] for word in words[1:3])
        clean = bytes(byte if 32 <= byte < 127 else 32 for byte in shown)
        return b"-ERR unknown command '%s', with args beginning with: %s \r\n" % (first, clean)

    def _ping(self, words: list[bytes]) -> bytes:
        return bulk(words[0]) if words else b"+PONG\r\n"

    def _auth(self, words: list[bytes]) -> bytes:
        if not words:
            return b"-ERR wrong number of arguments for 'auth' command\r\n"
        user, password = (words[0], words[1]) if len(words) > 1 else (b"default", words[0])
        self.findings.tried(user, password)
        if len(words) > 1:
            return b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
        return (
            b"-ERR AUTH <password> called without any password configured for the default user. "
            b"Are you sure your configuration is correct?\r\n"
        )

    def _hello(self, words: list[bytes]) -> bytes:
        if len(words) > 3 and words[1].upper() == b"AUTH":
            self.findings.tried(words[2], words[3])
            return b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
        version = self.identity.redis
        if version.startswith("5."):
            return b"-ERR unknown command `HELLO`, with args beginning with: \r\n"
        if words and words[0] not in (b"2", b"3"):
            return b"-NOPROTO unsupported protocol version\r\n"
        self._protocol = int(words[0]) if words else self._protocol
        head = b"%7\r\n" if self._protocol == 3 else b"*14\r\n"
        pairs = [
            (b"server", bulk(b"redis")), (b"version", bulk(version.encode())), (b"proto", b":%d\r\n" % self._protocol),
            (b"id", b":%d\r\n" % (self.identity.uptime % 90000)), (b"mode", bulk(b"standalone")),
            (b"role", bulk(b"master")), (b"modules", b"*0\r\n"),
        ]  # fmt: skip
        return head + b"".join(bulk(key) + value for key, value in pairs)

    def _info(self, words: list[bytes]) -> bytes:
        who = self.identity
        memory = who.lot("redis").randrange(900_000, 5_000_000)
        text = (
            f"# Server\r\nredis_version:{who.redis}\r\nredis_mode:standalone\r\nos:Linux {who.kernel} x86_64\r\n"
            f"arch_bits:64\r\ngcc_version:10.2.1\r\nprocess_id:{who.uptime % 3000 + 400}\r\nrun_id:{who.machine_id}"
            f"{who.machine_id[:8]}\r\ntcp_port:{self.place.dport}\r\nuptime_in_seconds:{who.uptime}\r\n"
            f"executable:/usr/bin/redis-server\r\nconfig_file:/etc/redis/redis.conf\r\n\r\n# Clients\r\n"
            f"connected_clients:1\r\n\r\n# Memory\r\nused_memory:{memory}\r\n\r\n# Replication\r\nrole:master\r\n"
            f"connected_slaves:0\r\n\r\n# Keyspace\r\ndb0:keys={len(self._keys)},expires=0,avg_ttl=0\r\n"
        )
        return bulk(text.encode())

    def _config_command(self, words: list[bytes]) -> bytes:
        verb = words[0].upper() if words else b""
        if verb == b"GET" and len(words) > 1:
            name = words[1].lower()
            names = [name] if name in self._config else list(self._config) if name == b"*" else []
            pairs = b"".join(bulk(key) + bulk(self._config[key]) for key in names)
            return (b"%%%d\r\n" % len(names) if self._protocol == 3 else b"*%d\r\n" % (2 * len(names))) + pairs
        if verb == b"SET" and len(words) > 2 and words[1].lower() in self._config:
            self._config[words[1].lower()] = words[2][:MOST_VALUE]
            return OK
        if verb == b"SET" and len(words) > 2:
            return OK
        return OK if verb in (b"REWRITE", b"RESETSTAT") else b"-ERR Unknown subcommand or wrong number of arguments\r\n"

    def _set(self, words: list[bytes]) -> bytes:
        if len(words) < 2:
            return b"-ERR wrong number of arguments for 'set' command\r\n"
        name = words[0][:MOST_VALUE]
        room = len(self._keys) < MOST_KEYS and sum(map(len, self._keys)) + len(name) <= MOST_NAMES
        if room or name in self._keys:
            self._keys[name] = words[1][:MOST_VALUE]
        return OK

    def _get(self, words: list[bytes]) -> bytes:
        none = b"_\r\n" if self._protocol == 3 else NIL
        return bulk(self._keys[words[0]]) if words and words[0] in self._keys else none

    def _del(self, words: list[bytes]) -> bytes:
        return b":%d\r\n" % sum(self._keys.pop(key, None) is not None for key in words)

    def _exists(self, words: list[bytes]) -> bytes:
        return b":%d\r\n" % sum(key in self._keys for key in words)

    def _keys_command(self, words: list[bytes]) -> bytes:
        return array(list(self._keys))

    def _client(self, words: list[bytes]) -> bytes:
        verb = words[0].upper() if words else b""
        if verb == b"ID":
            return b":%d\r\n" % (self.identity.uptime % 90000)
        if verb == b"LIST":
            return bulk(f"id=3 addr={self.place.src}:{self.place.sport} fd=8 name= db=0 cmd=client\n".encode())
        return OK

    def _flush(self, words: list[bytes]) -> bytes:
        self._keys.clear()
        return OK

    def _quit(self, words: list[bytes]) -> bytes:
        self.done = True
        return OK


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


def array(items: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(map(bulk, items))


def _says(text: bytes) -> Callable[[Redis, list[bytes]], bytes]:
    return lambda redis, words: text


_COMMANDS: dict[bytes, Callable[[Redis, list[bytes]], bytes]] = {
    b"PING": Redis._ping, b"AUTH": Redis._auth, b"HELLO": Redis._hello, b"INFO": Redis._info, b"SET": Redis._set,
    b"CONFIG": Redis._config_command, b"GET": Redis._get, b"DEL": Redis._del, b"EXISTS": Redis._exists,
    b"KEYS": Redis._keys_command, b"CLIENT": Redis._client, b"FLUSHALL": Redis._flush, b"FLUSHDB": Redis._flush,
    b"QUIT": Redis._quit,
    b"ECHO": lambda redis, words: bulk(words[0]) if words else b"-ERR wrong number of arguments\r\n",
    b"SELECT": _says(OK), b"SAVE": _says(OK), b"BGSAVE": _says(b"+Background saving started\r\n"),
    b"SLAVEOF": _says(OK), b"REPLICAOF": _says(OK), b"EXPIRE": _says(b":1\r\n"), b"TTL": _says(b":-1\r\n"),
    b"DBSIZE": lambda redis, words: b":%d\r\n" % len(redis._keys),
    b"TYPE": _says(b"+string\r\n"), b"COMMAND": _says(b"*0\r\n"), b"ROLE": _says(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"),
    b"MODULE": _says(b"-ERR Error loading the extension. Please check the server logs.\r\n"),
    b"EVAL": _says(b"-NOPERM this user has no permissions to run the 'eval' command\r\n"),
    b"MULTI": _says(OK), b"EXEC": _says(b"*0\r\n"), b"SUBSCRIBE": _says(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n"),
    b"SCAN": lambda redis, words: b"*2\r\n$1\r\n0\r\n" + array(list(redis._keys)),
    b"LPUSH": _says(b":1\r\n"), b"RPUSH": _says(b":1\r\n"), b"SADD": _says(b":1\r\n"), b"MSET": _says(OK),
}  # fmt: skip

TALK = Redis
