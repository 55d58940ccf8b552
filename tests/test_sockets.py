from __future__ import annotations

import socket
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.capture import sockets
from tests.harness import wait_until


def test_hosts_become_addresses_without_repeats() -> None:
    found = sockets.resolve(["127.0.0.1", "[::1]", "::1", "127.0.0.1"])
    assert found == [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    assert (socket.AF_INET, "127.0.0.1") in sockets.resolve(["localhost"])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1.1", "a" * 300, "\u2603" * 70])
def test_a_host_that_has_no_address_is_one_line(host: str) -> None:
    with pytest.raises(sockets.ListenError, match="cannot listen on") as caught:
        sockets.resolve([host])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:1", "::ffff:1"),
    ],
)
def test_addresses_are_written_plain(address: str, plain: str) -> None:
    assert sockets.plain(address) == plain


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 80), st.binary(max_size=40))))
def test_no_control_message_breaks_the_reader(messages: list[tuple[int, int, bytes]]) -> None:
    dst, dport, instant, lost = sockets.told(messages)
    assert isinstance(dst, str)
    assert 0 <= dport <= 65535
    assert 0 <= lost < 1 << 32
    assert isinstance(instant, int)


def test_control_messages_tell_destination_time_and_losses() -> None:
    four = (socket.SOL_IP, sockets.IP_ORIGDSTADDR, struct.pack("=HH4s8x", 2, socket.htons(53), bytes([192, 0, 2, 1])))
    when = (socket.SOL_SOCKET, sockets.SO_TIMESTAMPNS, struct.pack("ll", 5, 7))
    lost = (socket.SOL_SOCKET, sockets.SO_RXQ_OVFL, struct.pack("=I", 9))
    assert sockets.told([four, when, lost]) == ("192.0.2.1", 53, 5_000_000_007, 9)
    address = socket.inet_pton(socket.AF_INET6, "2001:db8::9")
    six = (socket.IPPROTO_IPV6, sockets.IPV6_ORIGDSTADDR, struct.pack("=HHI16sI", 10, socket.htons(161), 0, address, 0))
    assert sockets.told([six]) == ("2001:db8::9", 161, 0, 0)


def test_the_kernels_time_of_a_datagram_is_when_it_came_not_when_it_was_read() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sockets.want_destinations(sock)

        def told_in_time() -> bool:
            before = time.time_ns()
            sock.sendto(b"x", sock.getsockname())
            after = time.time_ns()
            time.sleep(0.2)
            _, ancillary, _, _ = sock.recvmsg(10, sockets.ANCILLARY_BYTES)
            dst, dport, instant, _ = sockets.told(ancillary)
            assert (dst, dport) == sock.getsockname()
            assert instant >= before
            return instant <= after + 100_000_000

        # The kernel begins to stamp packets some moments after the first socket asks for it, by a work queue.
        wait_until(told_in_time, "a stamp of the time of arrival")


def test_a_receive_timeout_is_inherited_and_ends_a_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sockets.set_receive_timeout(server, 0.1)
        with socket.create_connection(server.getsockname()):
            accepted, _ = server.accept()
            with accepted, pytest.raises(BlockingIOError):
                accepted.recv(1)


def test_losses_are_counted_by_the_kernel() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert sockets.set_receive_buffer(sock, 4096) >= 1024
        assert sockets.drops(sock) == 0
        for _ in range(200):
            sock.sendto(b"x" * 500, sock.getsockname())
        assert 0 < sockets.drops(sock) < 200
