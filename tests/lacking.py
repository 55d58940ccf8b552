"""Hosts that lack something, made of the kernel's own means: a user without a name or a home, no IPv6, no threads."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PATIENCE

UID = 54321
_PLAIN = ("setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "--inh-caps", "-all", "--bounding-set")
PACKAGES = ("tcppc", "toml", "pytz")
THEIRS = ("h11", "prometheus_client")  # of use where they are there


def open_python(*prefix: str) -> str:
    """A Python that any user may run."""
    for python in (sys.executable, "/usr/bin/python3"):
        # By way of a shell: setpriv itself may still open what its user may not.
        look = f'{python} -c "import sys; sys.exit(sys.version_info < (3, 10))"'
        command = [*(prefix or (*_PLAIN, "-all")), "sh", "-c", f"{look}; exit $?"]
        if os.path.exists(python) and subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return python
    pytest.skip("needs a Python that any user may run")


def copied_packages(folder: Path) -> Path:
    """tcppc and what it needs, where every user may read: this project's folder may be closed, and so may Python's."""
    for name in (*PACKAGES, *THEIRS):
        spec = importlib.util.find_spec(name)
        assert name in THEIRS or spec
        if spec and spec.origin:
            shutil.copytree(Path(spec.origin).parent, folder / "packages" / name)
    return folder / "packages"


class Nameless:
    """A user that is a number: no entry in passwd(5), no capability, an environment of nothing but PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = open_python()
        self.packages = copied_packages(folder)
        self.work = folder / "work"
        self.work.mkdir()
        self.work.chmod(0o777)

    def command(self, *arguments: str, shell: str = "", capabilities: str = "-all") -> list[str]:
        """tcppc with these; `shell` is what the user's shell does first, `capabilities` as setpriv(1) has them."""
        words = [self.python, "-m", "tcppc", *arguments]
        given = ("-all",) if capabilities == "-all" else (f"-all,{capabilities}", "--ambient-caps", capabilities)
        inherited = [capabilities if word == "-all" else word for word in _PLAIN]
        return [*inherited, *given, "sh", "-c", f'{shell}exec "$@"', "sh", *words]

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(self.packages), "PYTHONDONTWRITEBYTECODE": "1", **more}

    def run(
        self, *arguments: str, shell: str = "", cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, shell=shell),
            cwd=cwd or self.work,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


def nameless() -> Iterator[Nameless]:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("changing the user needs root and setpriv (util-linux)")
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    folder.chmod(0o755)
    try:
        yield Nameless(folder)
    finally:
        shutil.rmtree(folder)


# Has the kernel refuse system calls of this process and its children (seccomp(2), classic BPF): a number and an errno
# each; for socket(2) of a family, the family too.
_REFUSE = """
import ctypes, os, struct, sys
audit, command = int(sys.argv[1]), sys.argv[3:]
rules = [tuple(map(int, word.split(","))) for word in sys.argv[2].split()]
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit), (RETURN, 0, 0, ALLOW)]
for number, error, *family in rules:
    code.append((LOAD, 0, 0, 0))
    code.append((EQUAL, 0, 3 if family else 1, number))
    code += [(LOAD, 0, 0, 16), (EQUAL, 0, 1, family[0])] if family else []
    code.append((RETURN, 0, 0, ERRNO | error))
code.append((RETURN, 0, 0, ALLOW))
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
made = Filter(len(code), ctypes.addressof(program))
assert libc.prctl(22, 2, ctypes.byref(made), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
os.execvp(command[0], command)
"""
# AUDIT_ARCH of linux/audit.h; numbers of asm/unistd.h.
_MACHINES = {
    "x86_64": (0xC000003E, {"socket": 41, "clone": 56, "clone3": 435}),
    "aarch64": (0xC00000B7, {"socket": 198, "clone": 220, "clone3": 435}),
}


def refusing(*rules: tuple[str | int, ...]) -> tuple[str, ...]:
    """Words before a command whose system calls (name, errno) or ("socket", errno, family) the kernel refuses."""
    if platform.machine() not in _MACHINES:
        pytest.skip(f"no numbers of system calls for {platform.machine()}")
    audit, numbers = _MACHINES[platform.machine()]
    words = " ".join(",".join(map(str, (numbers[str(name)], *rest))) for name, *rest in rules)
    return sys.executable, "-c", _REFUSE, str(audit), words
