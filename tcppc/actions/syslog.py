"""Kind `syslog`: one message of RFC 5424 to /dev/log or a UDP port, sent by the standard library's handler."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import socket

from tcppc.actions.job import Job, Outcome
from tcppc.actions.rule import RuleError

MOST_BYTES = 8192  # of the record in a message: more than 2048 need not be taken (RFC 5424 §6.1), many take 8192
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[^\[\]\s]+)?)\]|([^\[\]:/]+)):(\d{1,5})")


def address(text: str) -> str | tuple[str, int]:
    """A path, or (host, port). RuleError where it is neither."""
    if text.startswith("/"):
        return text
    match = _HOST_PORT.fullmatch(text)
    if not match or not 0 < int(match[3]) < 65536:
        raise RuleError(f'syslog = {text!r}: expected /dev/log, or a host and UDP port such as "192.0.2.5:514"')
    return match[1] or match[2], int(match[3])


def run(job: Job) -> Outcome:
    """APP-NAME is tcppc, MSGID what happened, the message the action's name and the record."""
    where = address(job.rule.action.syslog)
    values = job.values.values
    name = re.sub(r"[^!-~]", "-", values["SENSOR"])[:255] or "-"
    text = f"{job.rule.name}: {job.text}"
    if len(text) > MOST_BYTES:
        text = f"{text[:MOST_BYTES]}..."
    # After the priority, which the handler puts there: version, time, host, program, process, kind, no structured data.
    stamp = f"{values['TIMESTAMP'][:26]}{values['TIMESTAMP'][29:]}"  # six digits of a second's fraction at most
    line = f"1 {stamp} {name} tcppc {os.getpid()} {job.event.on} - {text}"
    failures: list[str] = []

    class Handler(logging.handlers.SysLogHandler):
        append_nul = False

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
            import sys

            problem = sys.exc_info()[1]
            failures.append(getattr(problem, "strerror", None) or str(problem))

    try:
        handler = Handler(where, facility=Handler.LOG_AUTHPRIV, socktype=socket.SOCK_DGRAM)
        if "%" in where[0]:  # a link-local address: no pair of host and port has its zone
            found = socket.getaddrinfo(where[0], where[1], type=socket.SOCK_DGRAM)
            handler.address = found[0][4]  # type: ignore[assignment]
    except OSError as problem:
        return Outcome(False, f"syslog {job.rule.action.syslog}: {problem.strerror or problem}")
    try:
        handler.emit(logging.makeLogRecord({"msg": line, "levelno": logging.WARNING, "levelname": "WARNING"}))
    finally:
        handler.close()
    return Outcome(not failures, f"syslog {job.rule.action.syslog}: {failures[0] if failures else 'sent'}")
