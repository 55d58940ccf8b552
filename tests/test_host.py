"""What a host has of its own, out of /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from tcppc.netfilter import host
from tests.harness import ended


@given(st.text())
def test_any_text_is_a_list_of_sockets(text: str) -> None:
    assert all(item.kind == "tcp" for item in host.parse_sockets("tcp", text))


@given(st.text())
def test_any_text_is_an_ssh_connection_or_none(text: str) -> None:
    assert host.parse_connection(text) is None or 0 < int(text.split()[3]) < 65536


def test_an_ssh_connection() -> None:
    assert host.parse_connection("198.51.100.7 50000 198.51.100.1 2222") == 2222
    assert host.parse_connection("fe80::1%eth0 50000 fe80::2%eth0 22") == 22
    assert host.parse_connection("198.51.100.7 50000 198.51.100.1 70000") is None
    assert host.parse_connection("198.51.100.7 50000") is None


def test_listening_sockets_are_found_and_others_are_not() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp,
        socket.create_connection(tcp.getsockname()) as client,
    ):
        udp.bind(("::1", 0))
        found = host.listening()
        assert ("tcp", tcp.getsockname()[1]) in found
        assert ("udp", udp.getsockname()[1]) in found
        assert ("tcp", client.getsockname()[1]) not in found
        inode = os.fstat(tcp.fileno()).st_ino
        assert list(host.owners({inode})) == [(inode, os.getpid())]


def test_the_session_is_found_also_where_sudo_took_the_variable() -> None:
    """An ancestor still has it."""
    program = "from tcppc.netfilter import host; print(host.ssh_ports({}))"
    shell = f"env -u SSH_CONNECTION {sys.executable} -c '{program}'; true"
    environment = os.environ | {"SSH_CONNECTION": "198.51.100.7 50000 198.51.100.1 2222"}
    done = subprocess.run(["sh", "-c", shell], env=environment, capture_output=True, text=True, check=True)
    assert "2222" in done.stdout


SSHD = """
import ctypes, socket
ctypes.CDLL(None).prctl(15, b"%s", 0, 0, 0)  # PR_SET_NAME
tcp = socket.create_server(("127.0.0.1", 0))
print(tcp.getsockname()[1], flush=True)
tcp.accept()
"""


def test_sshd_is_found_by_its_name_and_others_are_not() -> None:
    for name, wanted in (("sshd", True), ("sshd-session", True), ("dropbear", True), ("nginx", False)):
        command = [sys.executable, "-c", SSHD % name]
        with ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
            assert process.stdout
            port = int(process.stdout.readline())
            found = port in host.ssh_ports({})
            process.kill()
        assert found == wanted, name
