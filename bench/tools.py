"""The tools a run needs, made in a temporary folder: the load generators and the certificates.

What can't be made (no compiler, no OpenSSL headers, no openssl command) is told as a reason, so that the rest
can still be measured.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from servers import BenchError

HERE = Path(__file__).resolve().parent
LIBRARIES: dict[str, list[str]] = {"tcpload": [], "udpload": [], "tlsload": ["-lssl", "-lcrypto"]}
KEYS = {"rsa": ["rsa:2048"], "ecdsa": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]}


@dataclass
class Tools:
    """Where the programs and certificates are; `missing` says for a name why it is not there."""

    folder: Path
    missing: dict[str, str] = field(default_factory=dict)

    def certificate(self, kind: str) -> tuple[Path, Path]:
        """Certificate and key file; `kind` is `rsa` or `ecdsa`."""
        return self.folder / f"{kind}.crt", self.folder / f"{kind}.key"

    def load(self, program: str, *arguments: object, seconds: float) -> dict[str, float]:
        """Run a load generator to its end and return the numbers of its line."""
        try:
            done = subprocess.run(
                self._words(program, arguments), capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"{program} still ran after {seconds:.0f} s") from None
        if not done.stdout:
            raise BenchError(f"{program} failed: {done.stderr.strip() or f'code {done.returncode}'}")
        return {key: float(value) for key, value in (word.split("=") for word in done.stdout.split())}

    @contextlib.contextmanager
    def hold(self, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """`tcpload hold` while the block runs; its connections close when the block is left."""
        process = subprocess.Popen(
            self._words("tcpload", ("hold", *arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            assert process.stdin
            assert process.stdout
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

    def _words(self, program: str, arguments: tuple[object, ...]) -> list[str]:
        return [str(self.folder / program), *map(str, arguments)]


def make_tools(folder: Path, tls: bool) -> Tools:
    """Build the generators and, for TLS, the certificates; only what plain TCP and UDP need is an error."""
    tools = Tools(folder)
    for program, libraries in LIBRARIES.items():
        if program == "tlsload" and not tls:
            continue
        source, target = str(HERE / f"{program}.c"), str(folder / program)
        reason = run(["cc", "-O2", "-Wall", "-Wextra", "-o", target, source, *libraries])
        if reason and program != "tlsload":
            raise BenchError(f"cannot build {program}: {reason}")
        if reason:
            tools.missing[program] = f"cannot build {program} (are OpenSSL's headers installed?): {reason}"
    for kind, key in KEYS.items() if tls else ():
        certificate, private = tools.certificate(kind)
        names = ["-keyout", str(private), "-out", str(certificate), "-subj", "/CN=bench.invalid"]
        reason = run(["openssl", "req", "-x509", "-newkey", *key, "-nodes", "-days", "2", *names])
        if reason:
            tools.missing[kind] = f"cannot make the {kind} certificate: {reason}"
    return tools


def run(words: list[str]) -> str:
    """Run a command of at most a minute; '' when it went well, else the line that says why it did not."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return f"there is no command {words[0]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or [f"{words[0]} ended with code {done.returncode}"]
    return next((line for line in lines if "error" in line), lines[-1])
