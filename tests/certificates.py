"""Certificates for tests, made with the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make(folder: Path, kind: str = "rsa:2048") -> tuple[str, str]:
    """(certificate, key) of a self-signed pair; `kind` as `openssl req -newkey` takes it."""
    certificate, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=test"]
    command += ["-newkey", kind, *(["-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "ec" else [])]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return str(certificate), str(key)
