"""What this process may do beyond an ordinary user: looked at, named where it lacks, given back where it is not needed.

Numbers are those of include/uapi/linux/capability.h and prctl.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from pathlib import Path

NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_RESOURCE": 24,
}
# Who has these, root or who was granted them, may have a data folder that is somebody else's.
FILES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER")
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 24, 47, 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def parse_status(text: str, name: str = "CapEff") -> int:
    """A set out of /proc/PID/status, as bits; 0 where it is not there."""
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            try:
                return max(0, int(line.split()[1], 16))
            except (IndexError, ValueError):
                return 0
    return 0


def held(pid: int | str = "self") -> int:
    """The effective set of a process, as bits; 0 where it is gone."""
    try:
        return parse_status(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return 0


def has(name: str, bits: int | None = None) -> bool:
    return bool((held() if bits is None else bits) >> NUMBERS[name] & 1)


def bits(names: Collection[str]) -> int:
    return sum(1 << NUMBERS[name] for name in names)


def how_to_grant(names: Collection[str]) -> str:
    """What to type, for a service and for a command."""
    return f"AmbientCapabilities={' '.join(names)} in its unit, or setpriv --ambient-caps " + ",".join(
        "+" + name.removeprefix("CAP_").lower() for name in names
    )


def keep_only(names: Collection[str]) -> bool:
    """Give back all others, for good; those kept go to the programs we start too. This thread's sets, so call it
    before any other thread is started. True where that worked or there was nothing to do."""
    wanted = bits(names)
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    permitted, effective, inheritable = (parse_status(status, name) for name in ("CapPrm", "CapEff", "CapInh"))
    if not (permitted | effective | inheritable):
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii").strip())
    for number in range(last + 1):
        if not wanted >> number & 1:  # fails without CAP_SETPCAP: then nothing that we start can regain it either
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    sets = (effective & wanted, permitted & wanted, permitted & wanted)
    data = (_Data * 2)(*(_Data(*(each >> shift & 0xFFFFFFFF for each in sets)) for shift in (0, 32)))
    # The kernel takes out of the ambient set what is not permitted and inheritable any more.
    if libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(data)):
        return False
    for name in names:
        if permitted >> NUMBERS[name] & 1:
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, NUMBERS[name], 0, 0)
    return True
