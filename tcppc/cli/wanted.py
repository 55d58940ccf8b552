"""What is wanted of `tcppc flows`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tcppc.flows.console import Form
from tcppc.flows.names import Template


@dataclass(frozen=True, eq=False, repr=False)  # which are not asked for, and take time to make
class Wanted:
    """What the flags say, checked. `report` is None for report.xml in the folder, empty for none."""

    captures: Sequence[str]
    template: Template
    after: Sequence[str] = ()
    interface: str = ""
    promiscuous: bool = True
    user: str = ""
    udp: bool = False
    tunnels: bool = False
    checksums: bool = False
    expression: str = ""
    folder: str = "."
    most_bytes: int = -1
    most_seek: int = 0
    most_open: int = 0
    first_wins: bool = False
    index: bool = False
    keep: bool = False
    unhandled: str = ""
    json: str = ""
    report: str | None = None
    hashes: Sequence[str] = ()
    scanners: Sequence[str] = ()
    inflate: bool = True
    console: Form | None = None
    in_order: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    quiet: bool = False
    verbose: bool = False
