"""SSH as far as it is in clear text: the versions and both KEXINITs. The client's HASSH is in the record.

The lists are those of the OpenSSH release that the identity names, so that version and lists go together.
"""

from __future__ import annotations

from tcppc import text
from tcppc.personas.base import Place, Talk
from tcppc.personas.identity import Identity
from tcppc.protocols import ssh

MOST_VERSION = 255
"""Bytes of the version line (RFC 4253 §4.2)."""

# sshd's defaults by release, as `sshd -T` of that release prints them.
_CURVES = "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384,ecdh-sha2-nistp521"
_GROUPS = "diffie-hellman-group-exchange-sha256,diffie-hellman-group16-sha512,diffie-hellman-group18-sha512"
_KEX = {
    "8.2": f"{_CURVES},{_GROUPS},diffie-hellman-group14-sha256",
    "8.4": f"{_CURVES},{_GROUPS},diffie-hellman-group14-sha256",
    "8.9": f"{_CURVES},sntrup761x25519-sha512@openssh.com,{_GROUPS},diffie-hellman-group14-sha256",
    "9.2": f"sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com,{_CURVES},{_GROUPS},"
    "diffie-hellman-group14-sha256",
}
_HOST_KEYS = "rsa-sha2-512,rsa-sha2-256,ecdsa-sha2-nistp256,ssh-ed25519"
_CIPHERS = (
    "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com"
)
_MACS = (
    "umac-64-etm@openssh.com,umac-128-etm@openssh.com,hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,"
    "hmac-sha1-etm@openssh.com,umac-64@openssh.com,umac-128@openssh.com,hmac-sha2-256,hmac-sha2-512,hmac-sha1"
)
_DISCONNECT = b"\x01" + (3).to_bytes(4, "big")  # SSH_MSG_DISCONNECT, KEY_EXCHANGE_FAILED


class Ssh(Talk):
    """Up to where the keys would be exchanged."""

    name = "ssh"
    about = "SSH's version exchange and KEXINIT, with the client's HASSH in the record"
    speaks_first = True

    def __init__(self, identity: Identity, place: Place) -> None:
        super().__init__(identity, place)
        self._heard = bytearray()
        self._version = ""
        self._exchanged = False

    def greet(self) -> bytes:
        return f"SSH-2.0-{self.identity.openssh}\r\n".encode()

    def hear(self, data: bytes) -> bytes:
        self._heard += data
        said = b""
        if not self._version:
            end = self._heard.find(b"\n", 0, MOST_VERSION + 2)
            if end < 0:
                if len(self._heard) > MOST_VERSION:
                    self.done = True
                    return b"Invalid SSH identification string.\r\n"
                return b""
            line = bytes(self._heard[:end]).rstrip(b"\r")
            del self._heard[: end + 1]
            if not line.startswith(b"SSH-"):
                self.done = True
                return b"Invalid SSH identification string.\r\n"
            self._version = text.kept(line)
            self.findings.ssh = {"version": self._version}
            said = self._kexinit()
        return said + self._packets()

    def held(self) -> int:
        return len(self._heard)

    def _kexinit(self) -> bytes:
        release = self.identity.openssh.partition("_")[2][:3]
        cookie = self.identity.lot(f"cookie {self.place.now} {self.place.src} {self.place.sport}").randbytes(16)
        lists = (_KEX[release], _HOST_KEYS, _CIPHERS, _CIPHERS, _MACS, _MACS, "none,zlib@openssh.com",
                 "none,zlib@openssh.com", "", "")  # fmt: skip
        return ssh.packet(ssh.kexinit(cookie, lists))

    def _packets(self) -> bytes:
        while True:
            try:
                found = ssh.read_packet(bytes(self._heard[: ssh.MOST_PACKET + 4]))
            except ValueError:
                self.done = True
                return b""
            if found is None:
                return b""
            payload, taken = found
            del self._heard[:taken]
            if self._exchanged:  # the client's half of the key exchange: what comes next would be encrypted
                self.done = True
                reason = b"key exchange failed"
                return ssh.packet(_DISCONNECT + len(reason).to_bytes(4, "big") + reason + bytes(4))
            if payload[:1] == bytes([ssh.KEXINIT]):
                self._exchanged = True
                try:
                    hassh = ssh.read_kexinit(payload).hassh
                except ValueError:
                    self.done = True
                    return b""
                self.findings.ssh = {"version": self._version, "hassh": hassh}


TALK = Ssh
