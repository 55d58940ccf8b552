"""A host outside, made for a moment: a network namespace joined to this one by a pair of interfaces.

It has no name and no process of its own: it is held by one descriptor, and the kernel takes it and its interfaces away
when that is closed, however this process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from typing import TypeVar

from tcppc.netfilter import tools
from tcppc.netfilter.host import has_ipv6
from tcppc.netfilter.plan import DOCTOR_INTERFACE

INSIDE, OUTSIDE = DOCTOR_INTERFACE, "tcppc-out"
# Networks for measurements of devices (RFC 2544) and for private use (RFC 4193), which no stranger has.
ADDRESSES = {4: ("198.18.116.1", "198.18.116.2", 30), 6: ("fd74:6370:7063::1", "fd74:6370:7063::2", 64)}
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_OWN = "/proc/thread-self/ns/net"

Answer = TypeVar("Answer")


class OutsideError(Exception):
    """Why there is no such host, in one line."""


def _switch(descriptor: int) -> None:
    """Let this thread, and what it starts, be in another network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OutsideError(f"setns(2): {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def _within(descriptor: int) -> Iterator[None]:
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _switch(descriptor)
        try:
            yield
        finally:
            _switch(own)
    finally:
        os.close(own)


def _new_namespace() -> int:
    """Its descriptor."""
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OutsideError(f"unshare(2): {os.strerror(ctypes.get_errno())}: it needs root")
        try:
            return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _switch(own)
    finally:
        os.close(own)


class Outside:
    """The host; `run` calls something there. Sockets opened there stay there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def run(self, what: Callable[[], Answer]) -> Answer:
        with _within(self._descriptor):
            return what()


@contextlib.contextmanager
def host() -> Iterator[Outside]:
    """An outside host for the time of a `with`. OutsideError or RulesError where it cannot be had."""
    if any(name in (INSIDE, OUTSIDE) for _, name in socket.if_nameindex()):
        raise OutsideError(f"there is an interface {INSIDE} already: another tcppc doctor is at work")
    descriptor = _new_namespace()
    made = False
    try:
        words = f"link add {INSIDE} type veth peer name {OUTSIDE} netns /proc/{os.getpid()}/fd/{descriptor}"
        tools.run("ip", *words.split())
        made = True
        there = Outside(descriptor)
        tools.run("ip", "link", "set", INSIDE, "up")
        there.run(lambda: [tools.run("ip", "link", "set", name, "up") for name in ("lo", OUTSIDE)])
        six = has_ipv6(INSIDE) and there.run(lambda: has_ipv6(OUTSIDE))
        for family in (4, 6) if six else (4,):
            here, yonder, length = ADDRESSES[family]
            nodad = ["nodad"] if family == 6 else []
            tools.run("ip", "addr", "add", f"{here}/{length}", "dev", INSIDE, *nodad)
            _settle(there, yonder, here, length, nodad)
        yield there
    finally:
        if made:
            tools.run("ip", "link", "del", INSIDE)
        os.close(descriptor)


def _settle(there: Outside, yonder: str, gateway: str, length: int, nodad: list[str]) -> None:
    def settle() -> None:
        tools.run("ip", "addr", "add", f"{yonder}/{length}", "dev", OUTSIDE, *nodad)
        tools.run("ip", "route", "add", "default", "via", gateway)

    there.run(settle)
