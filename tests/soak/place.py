"""Where the soak takes place: two network namespaces joined by a veth pair, or loopback where that cannot be had.

    strangers veth0 ---- veth0 sensor

Addresses are those for documentation (RFC 2544, RFC 3849). Nothing leaves them. The data is on a small disk of its
own (a tmpfs) where that can be mounted, so that it can be filled.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.janitor import Janitor

SOURCES = 40
DISK_BYTES = 512 << 20
DEVICE = "veth0"


@dataclass
class Place:
    """`targets` are the sensor's addresses, `sources` the strangers', `balancer` the one whose PROXY protocol header is
    believed. With `namespaces` the sensor can have every port, and watch the interface."""

    folder: Path
    targets: list[str]
    sources: list[str]
    balancer: str
    sensor_prefix: list[str] = field(default_factory=list)
    strangers_prefix: list[str] = field(default_factory=list)
    namespaces: bool = False
    small_disk: bool = False

    @property
    def disk(self) -> Path:
        """What the data folder is on."""
        return self.folder / "disk"

    @property
    def data(self) -> Path:
        return self.disk / "data"


class PlaceError(Exception):
    """What could not be set up, in one line."""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise PlaceError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def why_loopback() -> str:
    """Why there are no network namespaces here; empty where there are."""
    if os.geteuid() != 0:
        return "not root"
    missing = [name for name in ("ip", "nft", "nsenter", "mount", "prlimit") if not shutil.which(name)]
    return f"missing: {', '.join(missing)}" if missing else ""


def make(folder: Path, janitor: Janitor, loopback: bool) -> Place:
    """Set it all up; the janitor knows of each thing before it is there."""
    (folder / "disk").mkdir(parents=True)
    if loopback:
        sources = [f"127.0.0.{number}" for number in range(2, 2 + SOURCES)]
        place = Place(folder, ["127.0.0.1", "::1"], sources, "127.0.0.200")
    else:
        place = _namespaces(folder, janitor)
        janitor.told("mount", place.disk)
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "soak", str(place.disk))
        place.small_disk = True
    place.data.mkdir()
    return place


def _namespaces(folder: Path, janitor: Janitor) -> Place:
    names = [f"tcppc-soak-{side}{os.getpid()}" for side in ("sensor", "strangers")]
    for name in names:
        janitor.told("netns", name)
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
    sensor, strangers = names
    run("ip", "-n", sensor, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", strangers)
    fours = [f"198.18.0.{number}" for number in range(10, 10 + SOURCES)]
    # Each of a /64 of its own, since that is what counts as one source.
    sixes = [f"2001:db8:{number:x}::7" for number in range(10, 10 + SOURCES)]
    balancer = "198.18.0.200"
    targets = ["198.18.0.1", "2001:db8::1"]
    for name, addresses in ((sensor, targets), (strangers, [*fours, *sixes, balancer])):
        for address in addresses:
            if ":" in address:
                run("ip", "-n", name, "addr", "add", f"{address}/32", "dev", DEVICE, "nodad")
            else:
                run("ip", "-n", name, "addr", "add", f"{address}/16", "dev", DEVICE)
        run("ip", "-n", name, "link", "set", DEVICE, "up")
    prefixes = [["ip", "netns", "exec", name] for name in names]
    return Place(folder, targets, fours + sixes, balancer, prefixes[0], prefixes[1], namespaces=True)


def kernel_counters(place: Place) -> dict[str, int]:
    """What the sensor's kernel counted of datagrams since the namespace was made, both families: `no_port` came where
    nobody listened, `buffer` found a socket's buffer full or no memory, `reassembly` are those whose fragments never
    came together. Empty on loopback, where others are counted too."""
    if not place.namespaces:
        return {}
    text = run(*place.sensor_prefix, "cat", "/proc/net/snmp", "/proc/net/snmp6")
    found: dict[str, int] = {}
    lines = [line.split() for line in text.splitlines()]
    for names, values in itertools.pairwise(lines):
        if names[0] == values[0] and names[0].endswith(":"):
            found |= {f"{names[0]}{name}": int(value) for name, value in zip(names[1:], values[1:], strict=True)}
    found |= {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
    return {
        "no_port": found.get("Udp:NoPorts", 0) + found.get("Udp6NoPorts", 0),
        "buffer": sum(
            found.get(name, 0) for name in ("Udp:RcvbufErrors", "Udp6RcvbufErrors", "Udp:MemErrors", "Udp6MemErrors")
        ),
        "reassembly": found.get("Ip:ReasmFails", 0) + found.get("Ip6ReasmFails", 0),
    }
