"""What this process may have of the machine: file descriptors and threads."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

# Descriptors that are not sessions: listeners, data files, log, certificate, what Python and pytz open.
SPARE_DESCRIPTORS = 64
# A thread is two mappings (stack and guard page) and shares a third with its neighbours; leave some for the rest.
MAPPINGS_PER_THREAD = 2
SPARE_MAPPINGS = 2048
SPARE_THREADS = 256


def raise_nofile(wanted: int = 0) -> int:
    """RLIMIT_NOFILE to `wanted`, or with 0 its soft limit to the hard one; returns the soft limit in force.

    OSError or ValueError where more than the hard limit is wanted and the process may not raise that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted:
        ceiling = hard if hard == resource.RLIM_INFINITY else max(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, ceiling))
    elif soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):  # not there on this kernel or in this container: no bound known
        return None
    return int(text) if text.isdigit() else None


def _cgroup_pids() -> int | None:
    """pids.max of this process's cgroup (version 2), as systemd's TasksMax sets it."""
    try:
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):
                return _number(f"/sys/fs/cgroup{line[3:]}/pids.max")
    except OSError:  # no /proc: no bound known
        return None
    return None


def sessions_possible(descriptors: int) -> int:
    """How many sessions at once descriptors, threads and memory mappings allow (proc(5), cgroup pids.max)."""
    bounds = [descriptors - SPARE_DESCRIPTORS]
    if mappings := _number("/proc/sys/vm/max_map_count"):
        bounds.append((mappings - SPARE_MAPPINGS) // MAPPINGS_PER_THREAD)
    for threads in (_number("/proc/sys/kernel/threads-max"), _number("/proc/sys/kernel/pid_max"), _cgroup_pids()):
        if threads:
            bounds.append(threads - SPARE_THREADS)
    user = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if user != resource.RLIM_INFINITY:
        bounds.append(user - SPARE_THREADS)
    return max(1, min(bounds))


def why(problem: OSError) -> str:
    """What an OSError says, for people: a limit of this process is named as what it is."""
    if problem.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY:
            return f"the file size limit (ulimit -f) is {limit} bytes"
    return problem.strerror or str(problem) or type(problem).__name__
