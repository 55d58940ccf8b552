"""Which program sent a SYN, where its headers tell. A mark is what a program's author chose, so that another can choose
it too: `tool` in the record is a strong hint, not a proof."""

from __future__ import annotations

from tcppc.protocols.packet import SYN, Packet, options

# As seen from Debian's nmap 7.93: a connect-less scan offers one option, its OS detection these in varying values.
_NMAP_SCAN = ["mss:1460"]
_NMAP_OS_WINDOWS = (31337,)


def name(packet: Packet, data: bytes) -> str:
    """zmap, masscan, mirai, nmap, hping3, or empty. `data` is what the packet was decoded from."""
    if packet.flags != SYN:
        return ""
    window = packet.window
    if packet.ip_id >= 0:
        dst = int.from_bytes(packet.dst, "big")
        # Mirai's scanner, as published: its sequence number is the address it calls. So have most of its descendants.
        if packet.seq == dst:
            return "mirai"
        # Zmap's packets had this IP id up to version 4.0 (github.com/zmap/zmap, pull request 798, changed it), and a
        # window of 65535.
        if packet.ip_id == 54321 and window == 65535:
            return "zmap"
        # Masscan's IP id is made of address, port and sequence number; seen from Debian's masscan 1.3.2. One SYN in
        # 65,536 of others has such an id, of those with this window few.
        if window == 1024 and packet.ip_id == (dst ^ packet.dport ^ packet.seq) & 0xFFFF:
            return "masscan"
    # Nmap's windows are 1024 times 1 to 4.
    if window in (1024, 2048, 3072, 4096) and options(data, packet.options) == _NMAP_SCAN:
        return "nmap"
    if window in _NMAP_OS_WINDOWS:
        return "nmap"
    # hping3's window; seen from Debian's hping3 3.a2. Hosts that speak TCP in earnest offer at least an MSS.
    if window == 512 and packet.options[0] == packet.options[1]:
        return "hping3"
    return ""
