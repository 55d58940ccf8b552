"""Which program sent a SYN, where its headers tell. A mark is what a program's author chose, so that another can choose
it too: `tool` in the record is a strong hint, not a proof.

Chances are those of one packet with random headers. TTLs are of the sender; some hops are gone on arrival.
"""

from __future__ import annotations

from tcppc.protocols.packet import SYN, Packet, options

_MSS = ["mss:1460"]
_ZMAP_WINDOWS = ["mss:1460", "nop", "ws:8", "nop", "nop", "sackok"]


def name(packet: Packet, data: bytes) -> str:
    """zmap, masscan, mirai, nmap, hping3, or empty. `data` is what the packet was decoded from."""
    # All of them but Mirai's copies leave the operating system's own ways: they forbid no fragmentation.
    if packet.flags != SYN or packet.dont_fragment:
        return ""
    window, bare = packet.window, packet.options[0] == packet.options[1]
    if packet.ip_id >= 0:
        dst = int.from_bytes(packet.dst, "big")
        # Mirai's scanner, as published (mirai/bot/scanner.c): the sequence number is the address it calls; 1 in 2^32.
        # So have most of its descendants.
        if packet.seq == dst:
            return "mirai"
        # zmap's src/probe_modules/packet.c up to 4.0: a fixed IP id, and its window. Pull request 798 of zmap/zmap made
        # the id random.
        if packet.ip_id == 54321 and window == 65535:
            return "zmap"
        # masscan's src/templ-pkt.c: the IP id is made of address, port and sequence number, 1 in 2^16; its windows over
        # the years besides, and a TTL of 255. Seen from Debian's 1.3.2.
        if (
            window in (0, 1024, 1025)
            and packet.ttl > 200
            and packet.ip_id == (dst ^ packet.dport ^ packet.seq) & 0xFFFF
        ):
            return "masscan"
    # hping3's sendtcp.c: a SYN that acknowledges something, which no stack sends, and its window. Seen from 3.a2.
    if bare and window == 512 and packet.ack:
        return "hping3"
    if bare:
        return ""
    offered = options(data, packet.options)
    # nmap's tcpip.cc: this window (in 2009 up to four times as large), its one option, a TTL from 37 to 59 (IPv6: any).
    # Seen from 7.93. Of its OS detection's probes (osscan2.cc) this window tells.
    if (window in (1024, 2048, 3072, 4096) and offered == _MSS and (packet.ttl < 60 or packet.ip_id < 0)) or (
        window == 31337
    ):
        return "nmap"
    # zmap from 4.1 on: by default the options of Windows, which itself has a TTL of 128 and forbids fragmentation.
    if window == 65535 and packet.ttl <= 64 and packet.ip_id >= 0 and offered == _ZMAP_WINDOWS:
        return "zmap"
    return ""
