from __future__ import annotations

import builtins
import re
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tcppc.capture import certificate, tls


def test_pairs_are_made_once_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first = certificate.pairs(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert certificate.pairs(folder) == first
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.iterdir()) == ["ecdsa.crt", "ecdsa.key", "rsa.crt", "rsa.key"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    tls.context(first)


def test_they_name_neither_the_host_nor_tcppc_and_differ_between_sensors(tmp_path: Path) -> None:
    subjects = set()
    for number in range(6):
        for path, _ in certificate.pairs(tmp_path / str(number)):
            pem = Path(path).read_text(encoding="ascii")
            certified = x509.load_pem_x509_certificate(pem.encode())
            # By what it says, not by its bytes: a short host name is among those of a key now and then.
            said = [certified.subject.rfc4514_string(), certified.issuer.rfc4514_string()]
            said += [str(extension.value) for extension in certified.extensions]
            assert "tcppc" not in str(said).lower()
            assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", str(said), re.IGNORECASE)
            subjects.add(ssl.PEM_cert_to_DER_cert(pem))
    assert len(subjects) == 12


@pytest.mark.parametrize("lost", ["ecdsa.crt", "rsa.key"])
def test_half_a_pair_that_a_crash_left_is_mended(tmp_path: Path, lost: str) -> None:
    certificate.pairs(tmp_path)
    (tmp_path / lost).unlink()
    mended = certificate.pairs(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    tls.context(mended)  # raises where a certificate and its key do not fit


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(certificate.CertificateError, match=r"capture\.state_dir takes a folder") as caught:
        certificate.pairs(tmp_path / "file" / "state")
    assert "\n" not in str(caught.value)


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return really(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(certificate.CertificateError, match=r"pip install 'tcppc\[tls\]', or give -C and -K"):
        certificate.pairs(tmp_path)
