"""Kind `webhook`: the record, or a digest's list, as JSON by POST, tried again where the other side is busy."""

from __future__ import annotations

import json
from typing import Any

from tcppc import __version__
from tcppc.actions.job import Job, Outcome
from tcppc.actions.rule import RuleError

RETRIES = 4
BACKOFF_SECONDS = 0.5  # doubled each time
TIMEOUT_SECONDS = 10.0
_AGAIN = (429, 500, 502, 503, 504)
_pool: Any = None


def check(url: str) -> None:
    """RuleError where it is no URL for this, or the HTTP library is missing."""
    try:
        from urllib3.exceptions import LocationParseError
        from urllib3.util import parse_url
    except ImportError:
        raise RuleError("webhook needs the package urllib3: pip install 'tcppc[actions]'") from None
    try:
        parsed = parse_url(url)
    except LocationParseError:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise RuleError(f"webhook = {url!r}: expected a URL such as https://example.org/hook")


def run(job: Job) -> Outcome:
    """POSTs it; follows no redirect."""
    import urllib3

    global _pool
    if _pool is None:
        _pool = urllib3.PoolManager(maxsize=8, block=False)
    url = job.rule.action.webhook
    events = f'"records":{job.text}' if job.digest else f'"record":{job.text}'
    body = f'{{"action":{json.dumps(job.rule.name)},"on":"{job.event.on}","count":{job.count},{events}}}'
    retry = urllib3.Retry(
        total=RETRIES,
        backoff_factor=BACKOFF_SECONDS,
        status_forcelist=_AGAIN,
        allowed_methods=None,
        redirect=0,
        raise_on_redirect=False,
        raise_on_status=False,
        respect_retry_after_header=False,  # whoever is asked must not say how long a worker sleeps
    )
    try:
        answer = _pool.request(
            "POST",
            url,
            body=body.encode("ascii"),
            headers={"Content-Type": "application/json", "User-Agent": f"tcppc/{__version__}"},
            retries=retry,
            timeout=urllib3.Timeout(total=TIMEOUT_SECONDS),
            preload_content=False,
        )
    except urllib3.exceptions.HTTPError as problem:
        reason = getattr(problem, "reason", None) or problem
        return Outcome(False, f"webhook: {type(reason).__name__}: {str(reason).rpartition(': ')[2]}")
    answer.close()  # what it says is of no interest, and may have no end
    return Outcome(200 <= answer.status < 300, f"webhook: HTTP {answer.status}")
