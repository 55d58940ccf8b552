"""The sensor's configuration: everything on that can be, drawn from the seed; and what a reload changes of it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.dialogues import SCRIPTS
from tests.soak.place import DEVICE, Place

PORT = 2323
METRICS = "127.0.0.1:2112"
HOOK = "127.0.0.1:8085"
DURATION = 40  # seconds that a session may take
TIMEOUT = 8  # seconds that it may be silent
MIB = 1 << 20

PERSONA = """\
about = "a PBX that asks for a password"
banner = "PBX ready\\r\\nlogin: "
otherwise = "unknown command\\r\\n"

[[expect]]
pattern = "^login (\\\\w+)"
reply = "password for $1: "

[[expect]]
pattern = "^quit"
reply = "goodbye\\r\\n"
close = true
"""


@dataclass
class Settings:
    """What the configuration file has, by section; `write` puts it there."""

    path: Path
    record: str
    sections: dict[str, dict[str, Any]]
    actions: list[dict[str, Any]]
    personas: Path
    _first: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def interval(self) -> int:
        return int(self.sections["tcppc"]["rotInt"])

    def write(self, spoiled: str = "") -> None:
        """With `spoiled`, a line that makes it wrong."""
        lines: list[str] = []
        for name, values in self.sections.items():
            lines += [f"[{name}]", *(f"{_key(key)} = {_value(value)}" for key, value in values.items()), ""]
        for action in self.actions:
            lines += ["[[action]]", *(f"{key} = {_value(value)}" for key, value in action.items()), ""]
        # In one step: the sensor may read it at any moment.
        fresh = self.path.with_suffix(".new")
        fresh.write_text("\n".join([*lines, spoiled]), encoding="utf-8")
        fresh.replace(self.path)

    def change(self, lot: random.Random) -> str:
        """Other values for some of what a reload takes; says which."""
        changes: list[tuple[str, str, Any]] = [
            ("tcppc", "rotInt", lot.choice((2, 3, 4, 5))),
            ("limits", "sessions_per_source", lot.choice((60, 80, 100))),
            ("limits", "memory", lot.choice((64, 96, 128)) * MIB),
            ("limits", "session_bytes", lot.choice((4, 16)) * MIB),
            ("files", "compress", lot.choice(("off", "gzip", "zstd"))),
            ("files", "logtype", lot.choice(("single", "multi"))),
            ("capture", "quiet", lot.choice((True, False))),
            ("personas", "default", lot.choice(("auto", "silent", "shell"))),
        ]
        chosen = [change for change in lot.sample(changes, 3) if change[0] in self.sections]
        for section, key, value in chosen:
            self.sections[section][key] = value
        return ", ".join(f"{section}.{key} = {value}" for section, key, value in chosen)

    def put_persona(self) -> None:
        (self.personas / "pbx.toml").write_text(PERSONA, encoding="utf-8")

    def take_persona(self) -> None:
        (self.personas / "pbx.toml").unlink(missing_ok=True)


def _key(key: str) -> str:
    return key if key.replace("_", "").isalnum() and not key[0].isdigit() else json.dumps(key)


def _value(value: Any) -> str:
    return json.dumps(value)  # strings, numbers, booleans and lists of them are written alike in TOML


def make(place: Place, lot: random.Random, record: str) -> Settings:
    folder = place.folder
    personas = folder / "personas"
    personas.mkdir()
    ports = {str(port): name for name, script in SCRIPTS.items() for port in script.ports if name != "shell"}
    sections: dict[str, dict[str, Any]] = {
        "tcppc": {
            "host": ["0.0.0.0", "::"] if place.namespaces else ["127.0.0.1", "::1"],
            "port": PORT,
            "timeout": TIMEOUT,
            "tcpFileFmt": str(place.data / "soak-%Y%m%d-%H%M%S.jsonl"),
            "rotInt": lot.randint(2, 5),
            "timezone": "UTC",
        },
        "capture": {
            "tls": "auto",
            "sensor": "soak",
            "quiet": False,
            "state_dir": str(folder / "state"),
            "proxy_protocol": [place.balancer],
            "udp_buffer": lot.choice((1, 8, 64)) * MIB,
            "rules": place.namespaces,
        },
        "personas": {"default": "auto", "folder": str(personas), **(ports if place.namespaces else {})},
        "limits": {
            "duration": DURATION,
            "sessions": 500,
            "sessions_per_source": 100,
            "session_bytes": 16 * MIB,
            "memory": 96 * MIB,
            "stop": 60,  # as under systemd
        },
        "files": {
            "record": record,
            "captures": str(folder / "captures.log"),
            "session_dir": str(folder / "sessions"),
            "compress": lot.choice(("gzip", "zstd")),
            "keep_bytes": 100 * MIB,
            "file_bytes": 32 * MIB,
        },
        "metrics": {"listen": METRICS},
        "actions": {"concurrency": 4, "timeout": 5},
    }
    if place.namespaces:
        sections["rules"] = {"interface": DEVICE, "ssh": "none"}
        sections["watch"] = {"interface": DEVICE}
    actions: list[dict[str, Any]] = [
        {
            "name": "command",
            "on": "end",
            "command": f"echo [SRC_IP] [SESSION_ID] >> {folder / 'touched'}",
            "once_per": "2s",
        },
        {"name": "hook", "on": "payload", "match": "(?i)wget|root", "webhook": f"http://{HOOK}/", "digest": "3s"},
        {"name": "syslog", "on": "connect", "syslog": str(folder / "syslog"), "once_per": "1s"},
    ]
    made = Settings(folder / "tcppc.toml", record, sections, actions, personas)
    made.put_persona()
    made.write()
    return made
