"""Who this sensor pretends to be. All of it follows from one seed, so that no two sensors are alike, a restart changes
nothing, and its parts go together: a profile is the software of one distribution's release.

Version strings are those that the distributions' packages carry (packages.debian.org, packages.ubuntu.com).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """The software of one release."""

    system: str
    kernel: str
    build: str
    openssh: str
    http: tuple[str, ...]
    php: str
    ftp: str
    smtp: str
    mysql: str
    redis: str
    bind: str
    snmp: str


PROFILES = (
    Profile(
        "Debian GNU/Linux 12 (bookworm)",
        "6.1.0-{patch}-amd64",
        "#1 SMP PREEMPT_DYNAMIC Debian 6.1.{minor}-1",
        "OpenSSH_9.2p1 Debian-2+deb12u{update}",
        ("Apache/2.4.62 (Debian)", "nginx/1.22.1"),
        "PHP/8.2.{php}",
        "(vsFTPd 3.0.3)",
        "ESMTP Postfix (Debian/GNU)",
        "5.5.5-10.11.{maria}-MariaDB-0+deb12u1",
        "7.0.15",
        "9.18.{bind}-1~deb12u1-Debian",
        "5.9.3",
    ),
    Profile(
        "Debian GNU/Linux 11 (bullseye)",
        "5.10.0-{patch}-amd64",
        "#1 SMP Debian 5.10.{minor}-1",
        "OpenSSH_8.4p1 Debian-5+deb11u{update}",
        ("Apache/2.4.62 (Debian)", "nginx/1.18.0"),
        "PHP/7.4.33",
        "(vsFTPd 3.0.3)",
        "ESMTP Exim 4.94.2",
        "5.5.5-10.5.{maria}-MariaDB-0+deb11u1",
        "6.0.16",
        "9.16.{bind}-Debian",
        "5.9",
    ),
    Profile(
        "Ubuntu 22.04.{point} LTS",
        "5.15.0-{ubuntu}-generic",
        "#{abi}-Ubuntu SMP",
        "OpenSSH_8.9p1 Ubuntu-3ubuntu0.{update}",
        ("Apache/2.4.52 (Ubuntu)", "nginx/1.18.0 (Ubuntu)"),
        "PHP/8.1.2-1ubuntu2.{php}",
        "(vsFTPd 3.0.5)",
        "ESMTP Postfix (Ubuntu)",
        "8.0.{mysql}-0ubuntu0.22.04.1",
        "6.0.16",
        "9.18.{bind}-0ubuntu0.22.04.1-Ubuntu",
        "5.9.1",
    ),
    Profile(
        "Ubuntu 20.04.{point} LTS",
        "5.4.0-{ubuntu}-generic",
        "#{abi}-Ubuntu SMP",
        "OpenSSH_8.2p1 Ubuntu-4ubuntu0.{update}",
        ("Apache/2.4.41 (Ubuntu)", "nginx/1.18.0 (Ubuntu)"),
        "PHP/7.4.3-4ubuntu2.{php}",
        "(vsFTPd 3.0.5)",
        "ESMTP Postfix (Ubuntu)",
        "8.0.{mysql}-0ubuntu0.20.04.1",
        "5.0.7",
        "9.18.{bind}-0ubuntu0.20.04.1-Ubuntu",
        "5.8",
    ),
)

_ROLES = ("app", "backup", "build", "cache", "db", "dev", "edge", "files", "git", "intra", "mail", "mon", "node", "ns",
          "old", "prod", "repo", "srv", "stage", "store", "test", "vps", "web", "work")  # fmt: skip
_ZONES = ("corp", "home", "internal", "intranet", "lab", "lan", "local", "net", "office", "prod")
_PEOPLE = ("adam", "alice", "andy", "anna", "ben", "carl", "chris", "dana", "david", "deploy", "eric", "eva", "frank",
           "george", "helen", "ivan", "jan", "jenny", "joe", "julia", "karl", "kim", "laura", "luis", "maria", "mark",
           "mike", "nick", "nina", "olga", "oscar", "paul", "peter", "rosa", "sam", "sara", "steve", "svc", "tina",
           "tom", "victor", "will")  # fmt: skip


class Identity:
    """Facts about the host that the sensor plays."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._chosen: dict[str, str] = {}
        lot = self.lot("host")
        profile = lot.choice(PROFILES)
        numbers = {
            "patch": lot.randint(18, 30), "minor": lot.randint(90, 130), "update": lot.randint(2, 7),
            "php": lot.randint(7, 24), "maria": lot.randint(3, 11), "bind": lot.randint(19, 33),
            "point": lot.randint(3, 5), "ubuntu": lot.randint(92, 130), "mysql": lot.randint(35, 41),
        }  # fmt: skip
        numbers["abi"] = numbers["ubuntu"] + lot.randint(3, 12)
        self.system, self.kernel, self.build, self.openssh, self.php, self.ftp, self.smtp, self.mysql, self.redis, \
            self.bind, self.snmp = (
                text.format(**numbers)
                for text in (
                    profile.system, profile.kernel, profile.build, profile.openssh, profile.php, profile.ftp,
                    profile.smtp, profile.mysql, profile.redis, profile.bind, profile.snmp,
                )
            )  # fmt: skip
        self.http = lot.choice(profile.http)
        self.host = f"{lot.choice(_ROLES)}{lot.choice(['', '-', '0'])}{lot.randint(1, 40)}"
        self.domain = f"{self.host}.{lot.choice(_ZONES)}"
        self.people = tuple(lot.sample(_PEOPLE, 3))
        # Installed and last started some time before now, but at moments that stay.
        self.installed = 1_640_995_200 + lot.randrange(80_000_000)
        self.uptime = lot.randrange(200_000, 20_000_000)
        self.machine_id = f"{lot.getrandbits(128):032x}"
        self.mac = ":".join(f"{byte:02x}" for byte in (0x52, 0x54, 0, *(lot.randrange(256) for _ in range(3))))
        self.memory_kib = lot.choice((1, 2, 4, 8, 16)) * 1024 * 1024 - lot.randrange(20_000, 90_000)
        self.cores = lot.choice((1, 2, 2, 4, 4, 8))

    def admits(self, user: str, password: str) -> bool:
        """Is this login let in? The same answer each time; about half of them are, and none without a password."""
        digest = hashlib.sha256(f"{self.machine_id}\0{user}\0{password}".encode("utf-8", "surrogatepass")).digest()
        return bool(password) and digest[0] < 128

    def choose(self, purpose: str, options: Sequence[str]) -> str:
        """One of these, the same each time."""
        if (chosen := self._chosen.get(purpose)) is None:
            chosen = self._chosen[purpose] = self.lot(purpose).choice(options)
        return chosen

    def lot(self, purpose: str) -> random.Random:
        """Chance that is the same each time for one purpose of one sensor."""
        return random.Random(hashlib.sha256(f"{self._seed}\0{purpose}".encode()).digest())
