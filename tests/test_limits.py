from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tcppc.capture import limits


def test_sessions_are_never_more_than_descriptors_allow() -> None:
    assert limits.sessions_possible(1024) == 1024 - limits.SPARE_DESCRIPTORS
    assert limits.sessions_possible(10) == 1
    assert limits.sessions_possible(1 << 30) < 1 << 22


@pytest.mark.parametrize(("wanted", "expected"), [(0, "300 300"), (200, "200 300")])
def test_the_soft_limit_is_raised(wanted: int, expected: str) -> None:
    script = (
        "import resource as r; from tcppc.capture.limits import raise_nofile as f; "
        f"r.setrlimit(r.RLIMIT_NOFILE, (100, 300)); f({wanted}); print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == expected


def test_the_limit_of_this_process_is_told() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits.raise_nofile(soft) == soft


REACHED = """
import os, resource, sys
from tcppc.capture.limits import why
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print(os.write(fd, bytes(2000)))
try:
    os.write(fd, bytes(1000))
except OSError as problem:
    print(why(problem))
"""


def test_the_file_size_limit_is_named_where_it_is_reached(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", REACHED, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "1000\nthe file size limit (ulimit -f) is 1000 bytes\n"


def test_an_error_has_words_whatever_it_is() -> None:
    assert limits.why(OSError(28, "No space left on device", "/x")) == "No space left on device"
    assert (
        limits.why(OSError(27, "File too large")) == "File too large"
    )  # of the file system: this process has no limit
    assert limits.why(OSError("Not a gzipped file")) == "Not a gzipped file"
    assert limits.why(OSError()) == "OSError"
