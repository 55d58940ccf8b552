"""Which protocol a first payload looks like: what is told apart, what is left open, what never happens."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcppc.protocols import app
from tcppc.protocols.app import guess

DNS_HEADER = bytes.fromhex("1a2b 0100 0001 0000 0000 0000")
DNS = DNS_HEADER + b"\x07example\x03com\x00\x00\x01\x00\x01"
NBSTAT = bytes.fromhex("80f0 0010 0001 0000 0000 0000") + b"\x20CK" + b"A" * 30 + b"\x00\x00\x21\x00\x01"
RPC = bytes.fromhex("72fe1d13 00000000 00000002 000186a0 0001977c 00000000") + bytes(16)  # portmapper
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(194)
RDP_COOKIE = b"Cookie: mstshash=user\r\n\x01\x00\x08\x00\x03\x00\x00\x00"
MSSQL_VERSIONS = bytes.fromhex("00001500060100 1b000102001c000c0300280004ff080001550000 00".replace(" ", ""))


def tpkt(content: bytes) -> bytes:
    return b"\x03\x00" + struct.pack("!H", len(content) + 4) + content


def request_of_cotp(user_data: bytes) -> bytes:
    return tpkt(bytes((len(user_data) + 6,)) + b"\xe0\x00\x00\x00\x00\x00" + user_data)


def mongodb(body: bytes, code: int) -> bytes:
    return struct.pack("<IIII", len(body) + 16, 1, 0, code) + body


def tds(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBHHBB", kind, 1, len(body) + 8, 0, 1, 0) + body


def over_tcp(message: bytes) -> bytes:
    return struct.pack("!H", len(message)) + message


TCP = [
    ("http", b"GET / HTTP/1.1\r\nHost: 192.0.2.10\r\n\r\n"),
    ("http", b"GET /\r\n"),
    ("http", b"GET http://192.0.2.1/ HTTP/1.1\r\n\r\n"),
    ("http", b"GET /" + b"a" * 2000),
    ("http", b"POST /cgi-bin/.%2e/bin/sh HTTP/1.1\r\n\r\n"),
    ("http", b"CONNECT 192.0.2.1:443 HTTP/1.1\r\n\r\n"),
    ("http", b"OPTIONS / HTTP/1.0\r\n\r\n"),
    ("http", b"PROPFIND / HTTP/1.1\r\n\r\n"),
    ("http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    ("rtsp", b"OPTIONS / RTSP/1.0\r\n\r\n"),
    ("rtsp", b"DESCRIBE rtsp://192.0.2.10/live RTSP/1.0\r\nCSeq: 2\r\n\r\n"),
    ("sip", b"OPTIONS sip:nm SIP/2.0\r\nVia: SIP/2.0/TCP nm\r\n\r\n"),
    ("sip", b"INVITE sip:100@192.0.2.10 SIP/2.0\r\n\r\n"),
    ("sip", b"SIP/2.0 200 OK\r\n\r\n"),
    ("tls", CLIENT_HELLO),
    ("tls", bytes.fromhex("802e 01 0002 0015 0000 0010") + bytes(37)),
    ("ssh", b"SSH-2.0-Go\r\n"),
    ("ssh", b"SSH-1.5-x\n"),
    ("smtp", b"EHLO scanner.example\r\n"),
    ("smtp", b"helo x\r\n"),
    ("lmtp", b"LHLO x\r\n"),
    ("ftp", b"AUTH TLS\r\n"),
    ("ftp", b"FEAT\r\n"),
    ("pop3", b"CAPA\r\n"),
    ("pop3", b"APOP user c4c9334bac560ecc979e58001b3e22fb\r\n"),
    ("imap", b"a001 CAPABILITY\r\n"),
    ("imap", b'1 login "user" "password"\r\n'),
    ("nntp", b"MODE READER\r\n"),
    ("irc", b"NICK bot\r\nUSER bot 0 * :bot\r\n"),
    ("irc", b"CAP LS 302\r\n"),
    ("redis", b"*1\r\n$4\r\nINFO\r\n"),
    ("redis", b"*2\r\n$4\r\nAUTH\r\n$3\r\nfoo\r\n"),
    ("redis", b"PING\r\n"),
    ("redis", b"info\r\n"),
    ("redis", b"CONFIG SET dir /var/spool/cron\r\n"),
    ("memcached", b"stats\r\n"),
    ("memcached", b"set key 0 900 5\r\nvalue\r\n"),
    ("memcached", bytes.fromhex("800b0000 00000000 00000000") + bytes(12)),
    ("zookeeper", b"ruok"),
    ("zookeeper", b"envi\n"),
    ("nats", b'CONNECT {"verbose":false}\r\n'),
    ("vnc", b"RFB 003.008\n"),
    ("rsync", b"@RSYNCD: 31.0\n"),
    ("git", b"0032git-upload-pack /project.git\0host=192.0.2.1\0"),
    ("xmpp", b"<?xml version='1.0'?><stream:stream to='example.com'>"),
    ("proxy", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"),
    ("rpc", b"\x80\x00\x00\x28" + RPC),
    ("rdp", request_of_cotp(RDP_COOKIE)),
    ("rdp", request_of_cotp(b"\x01\x00\x08\x00\x03\x00\x00\x00")),
    ("cotp", request_of_cotp(b"")),
    ("cotp", request_of_cotp(bytes.fromhex("c0010ac1020100c2020102"))),
    ("s7comm", tpkt(bytes.fromhex("02f080 32010000000000080000f0000001000101e0"))),
    ("t125", tpkt(bytes.fromhex("02f080 7f658201940401010401010101ff30"))),
    ("smb", bytes.fromhex("0000002f ff534d4272") + bytes(42)),
    ("smb", bytes.fromhex("00000068 fe534d4240") + bytes(99)),
    ("netbios-ssn", bytes.fromhex("81000044 20") + b"CK" + b"A" * 65),
    ("mssql", tds(0x12, MSSQL_VERSIONS)),
    ("mssql", tds(0x10, struct.pack("<I", 144) + bytes.fromhex("04000074") + bytes(136))),
    ("postgresql", bytes.fromhex("00000008 04d2162f")),
    ("postgresql", bytes.fromhex("00000017 00030000") + b"user\0postgres\0\0"),
    ("mongodb", mongodb(bytes(4) + b"admin.$cmd\0" + bytes(8), 2004)),
    ("mongodb", mongodb(bytes(30), 2013)),
    ("ldap", bytes.fromhex("300c 020101 6007 020103 0400 8000")),
    ("ldap", bytes.fromhex("3084 00000025 020102 63840000001c")),
    ("mqtt", bytes.fromhex("101a 0004") + b"MQTT" + bytes.fromhex("04020014000e") + b"mosqsub/123456"),
    ("mqtt", bytes.fromhex("108001 0006") + b"MQIsdp\x03" + bytes(120)),
    ("socks4", bytes.fromhex("0401 0050 c0000201 00")),
    ("socks4", bytes.fromhex("0401 01bb 00000001") + b"user\0example.com\0"),
    ("socks5", b"\x05\x01\x00"),
    ("socks5", b"\x05\x02\x00\x02"),
    ("socks5", bytes.fromhex("050100 05010001 c0000201 0050")),
    ("dcerpc", bytes.fromhex("05000b03 10000000 48000000 01000000") + bytes(56)),
    ("dnp3", bytes.fromhex("056405c9000000000000")),
    ("dnp3", bytes.fromhex("05640bc4000000000000") + bytes(8)),
    ("adb", b"CNXN" + bytes.fromhex("00000001 00100000 07000000 32020000 bcb1a7b1") + b"host::\0"),
    ("telnet", bytes.fromhex("fffd03 fffb18")),
    ("bgp", b"\xff" * 16 + bytes.fromhex("001d 01 04 fe09 00b4 c0000201 00")),
    ("jdwp", b"JDWP-Handshake"),
    ("rmi", b"JRMI\0\2K"),
    ("giop", b"GIOP\1\2\1\0" + bytes(20)),
    ("amqp", b"AMQP\0\0\x09\1"),
    ("ajp13", bytes.fromhex("1234 0001 0a")),
    ("x11", bytes.fromhex("6c000b000000000000000000")),
    ("x11", bytes.fromhex("4200000b0000000000000000")),
    ("bittorrent", b"\x13BitTorrent protocol" + bytes(48)),
    ("iec-104", bytes.fromhex("680407000000")),
    ("enip", bytes.fromhex("6300") + bytes(22)),
    ("enip", bytes.fromhex("65000400") + bytes(20) + bytes.fromhex("01000000")),
    ("opcua", b"HELF" + struct.pack("<I", 32) + bytes(24)),
    ("epmd", b"\0\1n"),
    ("stun", bytes.fromhex("00010000 2112a442") + bytes(12)),
    ("dns", over_tcp(DNS)),
    ("dns", over_tcp(DNS_HEADER + b"\x07version\x04bind\0\0\x10\0\3")),
    ("modbus", bytes.fromhex("0001 0000 0006 01 03 0000 000a")),
    ("modbus", bytes.fromhex("5a47 0000 0005 00 2b 0e 01 00")),
]

UDP = [
    ("sip", b"OPTIONS sip:100@192.0.2.10 SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.7\r\n\r\n"),
    ("ssdp", b'M-SEARCH * HTTP/1.1\r\nHost: 239.255.255.250:1900\r\nMan: "ssdp:discover"\r\n\r\n'),
    ("ws-discovery", b'<?xml version="1.0"?><e xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"/>'),
    ("syslog", b"<34>1 2003-10-11T22:14:15.003Z mymachine su - ID47 - failed"),
    ("syslog", b"<13>Feb  5 17:32:18 10.0.0.99 Use the BFG!"),
    ("bt-dht", b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe"),
    ("tftp", b"\0\1x86\0octet\0"),
    ("tftp", b"\0\2a/b\0NetASCII\0blksize\x001428\0"),
    ("stun", bytes.fromhex("00010008 2112a442") + bytes(20)),
    ("dtls", bytes.fromhex("16feff 0000 000000000000 0036 01") + bytes(53)),
    ("wireguard", bytes.fromhex("01000000") + bytes(144)),
    ("dhcp", bytes.fromhex("01010600") + bytes(232) + bytes.fromhex("63825363 350101 ff")),
    ("snmp", bytes.fromhex("3026 020101 0406") + b"public" + bytes.fromhex("a019")),
    ("snmp", bytes.fromhex("303e 020103 3011 020408020100")),
    ("cldap", bytes.fromhex("3084 0000002d 020107 638400000024")),
    ("bacnet", bytes.fromhex("810a0011 0104 0005 010c 0c 023fffff 194b")),
    ("rmcp", bytes.fromhex("0600ff07 00000000000000000009 2018c88100388e04b5")),
    ("enip", bytes.fromhex("6300") + bytes(22)),
    ("l2tp", bytes.fromhex("c8020014 00000000 00000000 80080000 00000001")),
    ("quic", bytes.fromhex("c3 00000001 08") + bytes(1200)),
    ("quic", bytes.fromhex("ca 1a2a3a4a 08") + bytes(1200)),
    ("ntp", b"\xe3\x00\x04\xfa" + bytes(44)),
    ("ntp", b"\x1b" + bytes(47)),
    ("ntp", bytes.fromhex("1700032a") + bytes(4)),
    ("ntp", bytes.fromhex("160200010000000000000000")),
    ("coap", bytes.fromhex("4001 7d34 bb") + b".well-known\x04core"),
    ("coap", bytes.fromhex("5003 0001 ff") + b"payload"),
    ("rpc", RPC),
    ("memcached", bytes.fromhex("0001 0000 0001 0000") + b"stats\r\n"),
    ("netbios-ns", NBSTAT),
    ("dns", DNS),
    ("dns", DNS_HEADER + b"\0\0\xff\0\1"),
    ("dns", DNS_HEADER[:10] + b"\0\1" + DNS[12:] + bytes.fromhex("00 0029 1000 00000000 0000")),
    ("ike", b"\x11" * 8 + bytes(8) + bytes.fromhex("01100200 00000000 00000024") + bytes(8)),
    ("ike", bytes(4) + b"\x11" * 8 + bytes(8) + bytes.fromhex("21202208 00000000 0000001c")),
]

OPEN = [
    ("tcp", b""),
    ("tcp", b"\n"),
    ("tcp", b"\r\n\r\n"),
    ("tcp", b"A" * 64),
    ("tcp", bytes(64)),
    ("tcp", b"\xff" * 64),
    ("tcp", b"HELP\r\n"),
    ("tcp", b"QUIT\r\n"),
    ("tcp", b"USER anonymous\r\n"),  # FTP, POP3 or IRC
    ("tcp", b"user1 login\r\n"),
    ("tcp", b"USER login \r\n"),
    ("tcp", b"get key\r\n"),  # memcached or Redis
    ("tcp", b"GET key\r\n"),
    ("tcp", b"GETTING STARTED"),
    ("tcp", b"AUTH secret\r\n"),
    ("tcp", b"SSH"),
    ("tcp", b"root\r\n"),
    ("tcp", b"\x16\x03\x01\x00\x00\x01"),
    ("tcp", b"\x05\x01\x7f"),
    ("tcp", b"\x04\x01\x00\x50"),
    ("tcp", b"\xff\xf4\xff"),
    ("tcp", over_tcp(DNS) + b"\0"),
    ("tcp", bytes.fromhex("0001 0000 0006 01 7f 0000 000a")),
    ("udp", b"\0"),
    ("udp", b"A" * 64),
    ("udp", bytes(48)),
    ("udp", bytes(512)),
    ("udp", DNS + b"\0"),
    ("udp", DNS[:2] + b"\x81\x80" + DNS[4:]),  # an answer
    ("udp", b"\x1b" + b"\xaa" * 47),
    ("udp", b"GET / HTTP/1.1\r\n\r\n"),
    ("udp", CLIENT_HELLO),
]

CASES = [("tcp", name, data) for name, data in TCP] + [("udp", name, data) for name, data in UDP]


def label(value: object) -> str | None:
    return repr(value[:20]) if isinstance(value, bytes) else None


@pytest.mark.parametrize(("proto", "name", "data"), CASES, ids=label)
def test_a_protocol_is_told_by_its_first_bytes(proto: str, name: str, data: bytes) -> None:
    assert guess(data, proto) == name


@pytest.mark.parametrize(("name", "data"), TCP, ids=label)
def test_inside_tls_protocols_are_told_as_over_tcp(name: str, data: bytes) -> None:
    assert guess(data, "tls") == name


@pytest.mark.parametrize(("proto", "data"), OPEN, ids=label)
def test_bytes_that_do_not_tell_are_left_open(proto: str, data: bytes) -> None:
    assert guess(data, proto) is None


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_every_protocol_in_the_tables_has_an_example(proto: str) -> None:
    pairs, singles, numbered = app._TCP if proto == "tcp" else app._UDP
    rows = [row for filed in (*pairs.values(), *singles) for row in filed]
    names = {name for _, name, _ in rows} | {name for name, _ in numbered}
    assert names == {name for kind, name, _ in CASES if kind == proto}


def test_names_are_lower_case_ascii_that_json_takes_as_they_are() -> None:
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for _, name, _ in CASES)


@pytest.mark.parametrize(("proto", "name", "data"), CASES, ids=label)
def test_no_cut_of_an_example_is_taken_for_another_protocol(proto: str, name: str, data: bytes) -> None:
    assert {guess(data[:size], proto) for size in range(len(data))} <= {None, name}


@given(data=st.binary(max_size=600), proto=st.sampled_from(["tcp", "tls", "udp"]))
def test_any_bytes_give_a_name_or_none(data: bytes, proto: str) -> None:
    name = guess(data, proto)
    assert name is None or name.isascii()


@settings(max_examples=1500)
@given(
    case=st.sampled_from(CASES),
    edits=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.binary(max_size=3)), max_size=4),
    size=st.integers(0, 600),
)
def test_any_mutation_of_an_example_gives_a_name_or_none(
    case: tuple[str, str, bytes], edits: list[tuple[int, int, bytes]], size: int
) -> None:
    proto, _, data = case
    for at, gone, new in edits:
        data = data[:at] + new + data[at + gone :]
    for piece in (data, data[:size]):
        name = guess(piece, proto)
        assert name is None or (name and name.isascii())


@given(case=st.sampled_from(CASES), more=st.binary(min_size=1, max_size=40))
def test_bytes_after_the_first_512_are_never_looked_at(case: tuple[str, str, bytes], more: bytes) -> None:
    proto, _, data = case
    start = data[: app.LOOK].ljust(app.LOOK, b"\0")
    assert guess(start + more, proto) == guess(start + bytes(len(more)), proto)


@given(letters=st.text("abcdefghijklmnopqrstuvwxyz", min_size=5, max_size=512))
def test_letters_alone_are_no_protocol(letters: str) -> None:
    assert guess(letters.encode("ascii"), "tcp") is None
    assert guess(letters.encode("ascii"), "udp") is None
