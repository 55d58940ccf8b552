"""nft(8) and ip(8): run, with their errors in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tcppc.problems import Failure

# Debian's users have no sbin in their path.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])
_PACKAGES = {"nft": "nftables", "ip": "iproute2"}
# They answer at once; a kernel that does not is one that nothing here can help.
TIMEOUT_SECONDS = 30.0


class RulesError(Failure):
    """One line: what is in the way, and what to do."""


def path(name: str) -> str:
    """Where a tool is; RulesError where it is not."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise RulesError(f"{name} is missing: install the package {_PACKAGES.get(name, name)}")
    return found


def available(name: str) -> bool:
    return shutil.which(name, path=_PATH) is not None


def run(name: str, *arguments: str, text: str = "") -> str:
    """Standard output of a tool that was given `text`; RulesError where it fails."""
    try:
        done = subprocess.run(
            [path(name), *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise RulesError(f"{name} {' '.join(arguments)}: no answer in {TIMEOUT_SECONDS:.0f} seconds") from None
    except OSError as problem:
        raise RulesError(f"{name} cannot be run: {problem.strerror}") from None
    if done.returncode:
        raise RulesError(_reason(name, arguments, done.stderr, text))
    return done.stdout


def query(name: str, *arguments: str) -> list[dict[str, Any]]:
    """A tool's answer in JSON, as a list of objects."""
    answer = run(name, *arguments)
    try:
        found = json.loads(answer or "[]")
    except ValueError:
        raise RulesError(f"{name} {' '.join(arguments)}: its answer is no JSON; expected nft 0.9.3 or later") from None
    items = found.get("nftables", []) if isinstance(found, dict) else found
    return [item for item in items if isinstance(item, dict)]


def _reason(name: str, arguments: Sequence[str], stderr: str, text: str) -> str:
    """The first line that says something, with what to do where that is known."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = lines[0] if lines else "it failed and does not say why"
    if any(words in stderr for words in ("Operation not permitted", "you must be root", "Permission denied")):
        return f"not permitted: {name} needs root or CAP_NET_ADMIN"
    # nft shows the line and underlines what the kernel does not know.
    missing = [word for word in ("tproxy", "socket", "fib", "redirect") if any(word in line for line in lines[1:])]
    if "No such file or directory" in said and missing and text:
        hint = "; --mode redirect does without TPROXY" if missing[0] in ("tproxy", "socket") else ""
        return f"this kernel has no nft_{missing[0].replace('redirect', 'redir')}{hint}"
    return f"{name} {' '.join(arguments)}: {said}"


def read(file: str) -> str:
    """A file of /proc; empty where it is not there."""
    try:
        return Path(file).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
