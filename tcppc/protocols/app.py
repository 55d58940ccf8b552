"""What application protocol a session's first payload looks like: bytes in, a name or None out.

Names are those of IANA's service registry or of Wireshark's filters. A wrong guess is worse than none: where
several protocols begin with the same bytes (USER of FTP, POP3 and IRC) the answer is None. What bytes mean is
one table a transport, a row for each way a protocol begins: the first bytes, the name, and a check of what
follows them. `guess` runs for every session, so rows are filed under their first two bytes when the module is
read, and protocols that begin with a free number are only tried where zero bytes hint at them.
Never looks at more than the first LOOK bytes; of the rest it knows the size alone.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from tcppc.protocols import client_hello

LOOK = 512
"""Bytes of a payload that are looked at, at most."""

_Check = Callable[[bytes, int], bool]
"""(the first LOOK bytes, size of the whole payload) to whether they go on as the protocol says."""

_Row = tuple[tuple[bytes, ...], str, "_Check | None"]
_Rest = tuple[tuple[str, _Check], ...]


def guess(data: bytes, proto: str) -> str | None:
    """The lower-case name of what `data` is, the first payload of a session over "tcp", "tls" or "udp"."""
    if not data:
        return None
    head = data[:LOOK]
    pairs, singles, numbered = _UDP if proto == "udp" else _TCP
    for prefixes, name, check in pairs.get(head[:2]) or singles[head[0]]:
        if head.startswith(prefixes) and (check is None or check(head, len(data))):
            return name
    if head.find(b"\0\0", 0, 16) >= 0:
        for name, test in numbered:
            if test(head, len(data)):
                return name
    return None


def _bytes(*first: int) -> tuple[bytes, ...]:
    return tuple([bytes((byte,)) for byte in first])


def _words(*words: bytes) -> tuple[bytes, ...]:
    """As clients write the words of protocols that don't care about case."""
    return tuple([form for word in words for form in (word, word.lower(), word.capitalize())])


def _big(head: bytes, at: int, size: int = 2) -> int:
    return int.from_bytes(head[at : at + size], "big")


def _little(head: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(head[at : at + size], "little")


def _holds(part: bytes) -> _Check:
    return lambda head, size: part in head


def _at(offset: int, *parts: bytes) -> _Check:
    return lambda head, size: head.startswith(parts, offset)


def _matches(pattern: bytes) -> _Check:
    match = re.compile(pattern).match
    return lambda head, size: match(head) is not None


# Text, mostly over TCP.

_HTTP_METHODS = (  # RFC 9110 §9, RFC 5789, RFC 4918
    *(b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "),
    *(b"PROPFIND ", b"PROPPATCH ", b"MKCOL ", b"COPY ", b"MOVE ", b"LOCK ", b"UNLOCK ", b"SEARCH "),
)
_RTSP_METHODS = (  # RFC 2326 §10
    *(b"OPTIONS ", b"DESCRIBE ", b"ANNOUNCE ", b"SETUP ", b"PLAY ", b"PAUSE ", b"TEARDOWN ", b"RECORD "),
    *(b"GET_PARAMETER ", b"SET_PARAMETER "),
)
_SIP_METHODS = (  # RFC 3261 §7.1 and its extensions
    *(b"OPTIONS ", b"INVITE ", b"REGISTER ", b"ACK ", b"BYE ", b"CANCEL ", b"SUBSCRIBE ", b"NOTIFY "),
    *(b"INFO ", b"MESSAGE ", b"PUBLISH ", b"REFER ", b"UPDATE ", b"PRACK "),
)
_imap_command = re.compile(rb"[A-Za-z.]{0,4}\d{1,6} (?i:CAPABILITY\r|STARTTLS\r|LOGIN |AUTHENTICATE )").match


def _http(head: bytes, size: int) -> bool:
    """A target as HTTP has them is enough, but for the method that SIP and RTSP have too."""
    plain = head.startswith((b"/", b"*", b"http://", b"https://"), head.find(b" ") + 1)
    return (plain and head[0] != ord("O")) or b" HTTP/" in head


def _imap(head: bytes, size: int) -> bool:
    """RFC 9051 §6.1, §6.2. The tag needs a digit here: "USER login" would be a tag and a command as well."""
    return head.find(b" ", 1, 11) > 0 and _imap_command(head) is not None


_SIP: tuple[_Row, ...] = ((_SIP_METHODS, "sip", _holds(b" SIP/2.0")), ((b"SIP/2.0 ",), "sip", None))
_TEXT: tuple[_Row, ...] = (
    *_SIP,
    (_RTSP_METHODS, "rtsp", _holds(b" RTSP/")),
    (_HTTP_METHODS, "http", _http),
    ((b"PRI * HTTP/2.0\r\n",), "http2", None),  # RFC 9113 §3.4
    ((b"SSH-1.", b"SSH-2."), "ssh", None),  # RFC 4253 §4.2
    (_words(b"EHLO", b"HELO"), "smtp", _at(4, b" ", b"\r", b"\n")),  # RFC 5321 §4.1.1.1
    (_words(b"LHLO "), "lmtp", None),  # RFC 2033 §4.1
    (_words(b"AUTH TLS", b"AUTH SSL"), "ftp", _at(8, b"\r", b"\n")),  # RFC 4217 §4
    (_words(b"FEAT", b"SYST", b"PASV", b"EPSV"), "ftp", _at(4, b"\r", b"\n")),  # RFC 959, 2389, 2428
    (_words(b"CAPA"), "pop3", _at(4, b"\r", b"\n")),  # RFC 2449 §5
    (_words(b"APOP "), "pop3", None),  # RFC 1939 §7
    (_words(b"MODE READER"), "nntp", _at(11, b"\r", b"\n")),  # RFC 3977 §5.3
    (_words(b"NICK ", b"CAP LS"), "irc", None),  # RFC 2812 §3.1.2, IRCv3
    # RESP, the Redis serialisation protocol, and its inline commands that nobody else has.
    ((b"*",), "redis", _matches(rb"\*\d{1,7}\r\n\$\d{1,9}\r\n")),
    (_words(b"PING", b"INFO"), "redis", _at(4, b"\r\n")),
    (_words(b"CONFIG GET ", b"CONFIG SET ", b"SLAVEOF ", b"REPLICAOF ", b"FLUSHALL\r\n"), "redis", None),
    # memcached's doc/protocol.txt; `get` is Redis' as well.
    ((b"stats\r\n", b"stats ", b"version\r\n", b"gets ", b"flush_all\r\n"), "memcached", None),
    ((b"set ", b"add "), "memcached", _matches(rb"\w+ [!-~]{1,250} \d+ -?\d+ \d+( noreply)?\r\n")),
    ((b"ruok", b"srvr", b"mntr", b"envi"), "zookeeper", lambda head, size: len(head.rstrip()) == 4),
    ((b"CONNECT {",), "nats", None),
    ((b"RFB ",), "vnc", _matches(rb"RFB \d{3}\.\d{3}\n")),  # RFC 6143 §7.1.1
    ((b"@RSYNCD: ",), "rsync", None),
    ((b"00",), "git", _at(4, b"git-upload-pack ", b"git-receive-pack ")),
    ((b"<",), "xmpp", _holds(b"<stream:stream")),  # RFC 6120 §4.2
    ((b"PROXY TCP", b"\r\n\r\n\0\r\nQUIT\n"), "proxy", None),  # HAProxy's proxy-protocol.txt
    (_bytes(*(string.ascii_letters + string.digits).encode()), "imap", _imap),
)


# Binary, over TCP.

# Functions whose requests have one length, MODBUS Application Protocol §6.
_MODBUS_LENGTHS = {1: 6, 2: 6, 3: 6, 4: 6, 5: 6, 6: 6, 7: 2, 8: 6, 11: 2, 12: 2, 17: 2, 43: 5}
# OP_QUERY, OP_MSG, OP_COMPRESSED, OP_INSERT, OP_COMMAND.
_MONGODB_CODES = frozenset((2004, 2013, 2012, 2002, 2010))
_LDAP_OPERATIONS = frozenset((0x42, 0x4A, 0x50, 0x60, 0x63, 0x66, 0x68, 0x6C, 0x6E, 0x77))
# Versions 3.0 and 3.2, CancelRequest, SSLRequest, GSSENCRequest; PostgreSQL's manual, Message Formats.
_POSTGRESQL_CODES = (b"\0\3\0\0", b"\0\3\0\2", b"\4\xd2\x16\x2e", b"\4\xd2\x16\x2f", b"\4\xd2\x16\x30")


def _sslv2(head: bytes, size: int) -> bool:
    """The SSLv2 form of a ClientHello, RFC 5246 §E.2."""
    if head[2:5] not in (b"\1\0\2", b"\1\3\0", b"\1\3\1", b"\1\3\2", b"\1\3\3") or _big(head, 5) % 3:
        return False
    return _big(head, 0) & 0x7FFF == 9 + _big(head, 5) + _big(head, 7) + _big(head, 9)


def _rpc(head: bytes, size: int) -> bool:
    """An ONC RPC call of version 2, RFC 5531 §9."""
    return size >= 40 and head.startswith(b"\0\0\0\0\0\0\0\2", 4)


def _memcached_binary(head: bytes, size: int) -> bool:
    """A header of 24 bytes, then extras, key and value; memcached's protocol-binary."""
    if size < 24 or head[1] > 0x25 or head[5]:
        return False
    return head[4] + _big(head, 2) <= _big(head, 8, 4) == size - 24


def _rdp(head: bytes, size: int) -> bool:
    """A connection request with a cookie or an RDP negotiation request, MS-RDPBCGR §2.2.1.1."""
    negotiates = head[11:12] == b"\1" and head[13:15] == b"\x08\0"
    return head[5:6] == b"\xe0" and (negotiates or head.startswith(b"Cookie: msts", 11))


def _mssql_prelogin(head: bytes, size: int) -> bool:
    """MS-TDS §2.2.6.5: a packet of that length whose first option is VERSION, of 6 bytes."""
    return size > 13 and _big(head, 2) == size and head[8:10] == b"\0\0" and head[11:13] == b"\0\6"


def _ber(head: bytes) -> int:
    """Where the content of a BER element of definite length begins, X.690 §8.1.3."""
    return 2 + (head[1] & 0x7F if len(head) > 1 and head[1] > 0x80 else 0)


def _ldap(head: bytes, size: int) -> bool:
    """A message id, then the tag of a request, RFC 4511 §4.1.1 and appendix B."""
    start = _ber(head)
    if head[start : start + 1] != b"\2" or len(head) < start + 7 or not 1 <= head[start + 1] <= 4:
        return False
    return head[start + 2 + head[start + 1]] in _LDAP_OPERATIONS


def _snmp(head: bytes, size: int) -> bool:
    """The version, then a community or, in version 3, the global data; RFC 1157 §4, 1901 §3, 3412 §6."""
    return head.startswith((b"\2\1\0\4", b"\2\1\1\4", b"\2\1\3\x30"), _ber(head))


def _mqtt(head: bytes, size: int) -> bool:
    """CONNECT: a length of one to four bytes, then the protocol's name, MQTT 3.1.1 §3.1."""
    return head.find(b"\0\4MQTT", 2, 11) > 0 or head.find(b"\0\6MQIsdp", 2, 13) > 0


def _socks4(head: bytes, size: int) -> bool:
    """Port, address, user and, for an address 0.0.0.x, a host name, both ended by NUL."""
    named = head[4:7] == b"\0\0\0" and head[7:8] != b"\0"
    return 9 <= size <= LOOK and head.endswith(b"\0") and head.count(b"\0", 8) == 1 + named


def _socks5(head: bytes, size: int) -> bool:
    """Methods 0 to 9, those that IANA has assigned, RFC 1928 §3, and maybe already the request."""
    end = 2 + head[1] if size > 2 else 0
    if not 2 < end <= size or max(head[2:end]) > 9:
        return False
    return size == end or head.startswith((b"\5\1\0", b"\5\2\0", b"\5\3\0"), end)


def _dnp3(head: bytes, size: int) -> bool:
    """A frame of a primary station; every 16 bytes of data have a checksum of 2; IEEE 1815 §9.2."""
    if size < 10 or head[2] < 5 or head[3] & 0xC0 != 0xC0:
        return False
    data = head[2] - 5
    return size == 10 + data + (data + 15) // 16 * 2


def _modbus(head: bytes, size: int) -> bool:
    """MBAP header, protocol 0, and a request that has its function's length; MODBUS TCP Guide §3.1.3."""
    return head[2:5] == b"\0\0\0" and 8 <= size == head[5] + 6 and _MODBUS_LENGTHS.get(head[7]) == head[5]


def _mongodb(head: bytes, size: int) -> bool:
    """A request in MongoDB's wire protocol; 48,000,000 bytes is the longest message that it allows."""
    if head[8:12] != b"\0\0\0\0" or _little(head, 12) not in _MONGODB_CODES:
        return False
    return 26 <= size <= _little(head, 0) <= 48_000_000


def _enip(head: bytes, size: int) -> bool:
    """EtherNet/IP's ListServices, ListIdentity or RegisterSession with status 0; CIP volume 2 §2-3."""
    return size >= 24 and head[8:12] == b"\0\0\0\0" and _little(head, 2, 2) + 24 == size


def _stun(head: bytes, size: int) -> bool:
    """The magic cookie and a length that is the rest's, RFC 8489 §5."""
    return head.startswith(b"\x21\x12\xa4\x42", 4) and _big(head, 2) + 20 == size


def _dns(head: bytes, size: int) -> bool:
    """A query with one question and nothing left over, RFC 1035 §4.1."""
    if head[4:10] != b"\0\1\0\0\0\0" or head[2] >> 3 not in (0, 4, 5):  # QUERY, NOTIFY, UPDATE; no answer
        return False
    at = 12
    while at < len(head) and 0 < head[at] <= 63:
        at += 1 + head[at]
    if at + 5 > len(head) or head[at]:
        return False
    whole = size == at + 5 or head[10:12] != b"\0\0"
    return whole and _big(head, at + 3) & 0x7FFF in (1, 3, 4, 254, 255)  # classes; mDNS uses the top bit


_BINARY: tuple[_Row, ...] = (
    ((b"\x16\x03",), "tls", lambda head, size: client_hello.looks_like(head) is True),
    (_bytes(0x80), "rpc", lambda head, size: _rpc(head[4:], size - 4)),  # in a record, RFC 5531 §11
    (_bytes(0x80, 0x81), "tls", _sslv2),
    (_bytes(0x80), "memcached", _memcached_binary),
    ((b"\3\0",), "rdp", _rdp),
    ((b"\3\0",), "s7comm", _at(4, b"\x02\xf0\x80\x32")),
    ((b"\3\0",), "t125", _at(4, b"\x02\xf0\x80\x7f\x65")),  # MCS Connect-Initial, T.125 §7
    # A connection request, ISO 8073 §13.3, in one TPKT, RFC 1006 §6
    ((b"\3\0",), "cotp", lambda head, size: head[5:6] == b"\xe0" and _big(head, 2) == size == head[4] + 5),
    (_bytes(0), "smb", _at(4, b"\xffSMB", b"\xfeSMB", b"\xfdSMB", b"\xfcSMB")),  # MS-SMB2 §2.1, §2.2
    ((b"\x81\x00\x00\x44\x20",), "netbios-ssn", None),  # RFC 1002 §4.3.2
    ((b"\x12\x00", b"\x12\x01"), "mssql", _mssql_prelogin),
    # A login tells the packet's length again, without the header's 8 bytes; MS-TDS §2.2.6.4.
    ((b"\x10\x01",), "mssql", lambda head, size: _big(head, 2) - 8 == _little(head, 8) > 0),
    ((b"\0\0",), "postgresql", lambda head, size: _big(head, 2) == size and head[4:8] in _POSTGRESQL_CODES),
    (_bytes(0x30), "ldap", _ldap),
    (_bytes(0x10), "mqtt", _mqtt),
    ((b"\4\1", b"\4\2"), "socks4", _socks4),
    ((b"\5\0\x0b",), "dcerpc", _at(4, b"\x10\0\0\0", b"\0\0\0\0")),  # a bind, C706 §12.6.4
    ((b"\5\x64",), "dnp3", _dnp3),
    (_bytes(5), "socks5", _socks5),
    ((b"CNXN",), "adb", _at(20, b"\xbc\xb1\xa7\xb1")),  # the command's bits inverted, AOSP's adb protocol.txt
    # IAC, WILL to DONT, and an option up to 49, as IANA has assigned them; RFC 854.
    ((b"\xff\xfb", b"\xff\xfc", b"\xff\xfd", b"\xff\xfe"), "telnet", lambda head, _: b"" < head[2:3] < b"2"),
    ((b"\xff" * 16,), "bgp", _at(18, b"\1\4")),  # OPEN of version 4, RFC 4271 §4.2
    ((b"JDWP-Handshake",), "jdwp", None),
    ((b"JRMI\0\1", b"JRMI\0\2"), "rmi", _at(6, b"K", b"L", b"M")),  # Java RMI specification §10.2
    ((b"GIOP\1",), "giop", None),
    ((b"AMQP\0", b"AMQP\1", b"AMQP\2", b"AMQP\3"), "amqp", None),
    ((b"\x12\x34",), "ajp13", lambda head, size: head[4:5] in (b"\2", b"\x0a") and _big(head, 2) + 4 == size),
    ((b"l\0\x0b\0\0\0", b"B\0\0\x0b\0\0"), "x11", None),
    ((b"\x13BitTorrent protocol",), "bittorrent", None),
    ((b"\x68\4\7\0\0\0", b"\x68\4\x43\0\0\0"), "iec-104", None),  # STARTDT and TESTFR, IEC 60870-5-104 §5
    ((b"c\0", b"e\0", b"\4\0"), "enip", _enip),
    ((b"HELF",), "opcua", lambda head, size: _little(head, 4) == size),  # OPC 10000-6 §7.1.2
    ((b"\0\1n",), "epmd", lambda head, size: size == 3),
    (_bytes(0), "stun", _stun),
    (_bytes(0, 1), "dns", lambda head, size: _big(head, 0) == size - 2 and _dns(head[2:], size - 2)),
)
_NUMBERED: _Rest = (("mongodb", _mongodb), ("modbus", _modbus))


# UDP.


def _netbios_name(head: bytes, size: int) -> bool:
    """A question for a name in NetBIOS' spelling, 32 letters, of type NB or NBSTAT; RFC 1002 §4.2."""
    return head[12:13] == b"\x20" and head[45:49] in (b"\0\0\x20\0", b"\0\0\x21\0") and _dns(head, size)


def _ntp(head: bytes, size: int) -> bool:
    """Mode 3, client, RFC 5905 §7.3; 6, control, RFC 9327 §2; 7, private, ntpd's ntp_request.h."""
    mode = head[0] & 7
    if mode == 3:  # stratum, poll and precision have few values that make sense
        return size >= 48 and head[1] <= 16 and head[2] <= 17 and (head[3] == 0 or head[3] >= 0xE0)
    if mode == 6:
        return size >= 12 and 1 <= head[1] <= 31 and _big(head, 10) <= size - 12
    return size >= 8 and head[2] in (0, 2, 3) and head[4:6] == b"\0\0"


def _coap(head: bytes, size: int) -> bool:
    """A request, CON or NON, whose options fill the datagram; RFC 7252 §3."""
    at = 4 + (head[0] & 15)
    if at > 12 or at > size or size > LOOK or not 1 <= head[1] <= 7:
        return False
    while at < size and head[at] != 0xFF:
        delta, length = head[at] >> 4, head[at] & 15
        if delta == 15 or length == 15:
            return False
        at += 1 + max(delta - 12, 0)
        wide = max(length - 12, 0)
        at += wide + (_big(head, at, wide) + (13, 269)[wide - 1] if wide else length)
    return at == size or at + 1 < size


def _quic(head: bytes, size: int) -> bool:
    """A long header of version 1, 2, a draft, Google's, or for greasing; RFC 9000 §15, §17.2, RFC 9369."""
    if size < 7 or head[5] > 20:
        return False
    if head.startswith((b"\0\0\0\1", b"\x6b\x33\x43\xcf", b"\xff\0\0", b"Q0"), 1):
        return True
    return size >= 1200 and all(byte & 15 == 10 for byte in head[1:5])


def _ike(head: bytes, size: int) -> bool:
    """A first message: no responder's SPI yet, version 1 or 2, the size; RFC 7296 §3.1, RFC 2408 §3.1."""
    if head.startswith(b"\0\0\0\0"):  # the non-ESP marker of port 4500, RFC 3948 §2.2
        head, size = head[4:], size - 4
    fresh = head[:8] != b"\0" * 8 and head[8:16] == b"\0" * 8
    return fresh and head[16:18] in (b"\1\x10", b"\x21\x20") and _big(head, 24, 4) == size


_NTP = _bytes(*[v << 3 | mode for v in (1, 2, 3, 4) for mode in (3, 0xC3, 6, 7)])  # 0xC0: clock not set

_DATAGRAMS: tuple[_Row, ...] = (
    *_SIP,
    ((b"M-SEARCH * HTTP/1.1", b"NOTIFY * HTTP/1.1"), "ssdp", None),  # UPnP Device Architecture 2.0 §1
    ((b"<",), "ws-discovery", _holds(b"/ws/2005/04/discovery")),
    # RFC 5424 §6, RFC 3164 §4.1
    ((b"<",), "syslog", _matches(rb"<(\d{1,2}|1[0-8]\d|19[01])>(1 [\d-]|[A-Z][a-z]{2} [ \d]\d )")),
    ((b"d1:",), "bt-dht", _holds(b"1:q")),  # BEP 5
    ((b"\0\1", b"\0\2"), "tftp", _matches(rb"(?s)..[^\0]+\0(?i:netascii|octet|mail)\0")),  # RFC 1350 §5
    (_bytes(0), "stun", _stun),
    ((b"\x16\xfe\xff", b"\x16\xfe\xfd"), "dtls", _at(13, b"\1")),  # RFC 6347 §4.1, §4.2.2
    ((b"\1\0\0\0",), "wireguard", lambda head, size: size == 148),  # the initiation, WireGuard §5.4.2
    ((b"\1\1\6\0",), "dhcp", _at(236, b"\x63\x82\x53\x63")),  # RFC 2131 §3
    (_bytes(0x30), "snmp", _snmp),
    (_bytes(0x30), "cldap", _ldap),
    # BACnet/IP's functions and length, ASHRAE 135 annex J.2
    (_bytes(0x81), "bacnet", lambda head, size: head[1:2] <= b"\x0c" and 4 <= size == _big(head, 2)),
    ((b"\x06\x00\xff\x06", b"\x06\x00\xff\x07"), "rmcp", None),  # ASF and IPMI, IPMI 2.0 §13.1.3
    ((b"c\0", b"\4\0"), "enip", _enip),
    ((b"\xc8\2",), "l2tp", lambda head, size: 12 <= size == _big(head, 2)),  # RFC 2661 §3.1
    (_bytes(*range(0xC0, 0x100)), "quic", _quic),
    (_NTP, "ntp", _ntp),
    (_bytes(*range(0x40, 0x60)), "coap", _coap),
)
_NUMBERED_DATAGRAMS: _Rest = (
    ("rpc", _rpc),
    ("memcached", _at(2, b"\0\0\0\1\0\0stats", b"\0\0\0\1\0\0get", b"\0\0\0\1\0\0version")),
    ("netbios-ns", _netbios_name),
    ("dns", _dns),
    ("ike", _ike),
)


def _file(rows: tuple[_Row, ...]) -> tuple[dict[bytes, list[_Row]], list[list[_Row]]]:
    """Rows, in their order: under the two bytes that any row begins with, and under one byte for the rest."""
    pairs: dict[bytes, list[_Row]] = {p[:2]: [] for prefixes, _, _ in rows for p in prefixes if len(p) > 1}
    singles: list[list[_Row]] = [[] for _ in range(256)]
    for prefixes, name, check in rows:
        for start, filed in pairs.items():
            if own := tuple([prefix for prefix in prefixes if prefix[:2] in (start, start[:1])]):
                filed.append((own, name, check))
        for prefix in prefixes:
            if len(prefix) == 1:
                singles[prefix[0]].append(((prefix,), name, check))
    return pairs, singles


_TCP = (*_file(_TEXT + _BINARY), _NUMBERED)
_UDP = (*_file(_DATAGRAMS), _NUMBERED_DATAGRAMS)
