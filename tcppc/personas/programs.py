"""What the shell's commands print: a table, a function each. Nothing is executed, fetched or resolved.

A command takes the machine, its words and what is piped into it; it returns what it prints and its exit status.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tcppc.personas.tree import TreeError, absolute, long_line

if TYPE_CHECKING:
    from tcppc.personas.commands import Machine

MOST_LISTED = 64 << 10
"""Characters after which a command that lists or prints files looks at no further one."""

Answer = tuple[str, int]
Command = Callable[["Machine", list[str], str], Answer]
COMMANDS: dict[str, Command] = {}


def command(*names: str) -> Callable[[Command], Command]:
    def register(function: Command) -> Command:
        COMMANDS.update(dict.fromkeys(names, function))
        return function

    return register


def _paths(words: list[str]) -> list[str]:
    return [word for word in words if not word.startswith("-")]


@command("id")
def _id(machine: Machine, words: list[str], piped: str) -> Answer:
    if "-u" in words:
        return "0\n", 0
    return "uid=0(root) gid=0(root) groups=0(root)\n", 0


@command("whoami")
def _whoami(machine: Machine, words: list[str], piped: str) -> Answer:
    return f"{machine.user}\n", 0


@command("uname")
def _uname(machine: Machine, words: list[str], piped: str) -> Answer:
    who = machine.identity
    parts = {"s": "Linux", "n": who.host, "r": who.kernel, "v": who.build, "m": "x86_64", "o": "GNU/Linux"}
    letters = "".join(word[1:] for word in words if re.fullmatch(r"-[a-z]+", word)) or "s"
    if "a" in letters:
        letters = "snrvmo"
    return " ".join(parts[letter] for letter in parts if letter in letters) + "\n", 0


@command("hostname")
def _hostname(machine: Machine, words: list[str], piped: str) -> Answer:
    return f"{machine.identity.domain if '-f' in words else machine.identity.host}\n", 0


@command("pwd")
def _pwd(machine: Machine, words: list[str], piped: str) -> Answer:
    return f"{machine.folder}\n", 0


@command("cd")
def _cd(machine: Machine, words: list[str], piped: str) -> Answer:
    back = machine.variables.get("OLDPWD", machine.folder)
    path = back if words == ["-"] else absolute(_paths(words)[0] if _paths(words) else "/root", machine.folder)
    try:
        machine.tree.names(path)
    except TreeError as problem:
        return f"bash: cd: {words[0] if words else path}: {problem}\n", 1
    machine.variables["OLDPWD"] = machine.folder
    machine.folder = machine.variables["PWD"] = path
    return "", 0


@command("ls", "dir")
def _ls(machine: Machine, words: list[str], piped: str) -> Answer:
    flags = "".join(word[1:] for word in words if word.startswith("-"))
    lines: list[str] = []
    status = 0
    targets = _paths(words) or ["."]
    for target in targets:
        if sum(map(len, lines)) > MOST_LISTED:
            break
        path = absolute(target, machine.folder)
        try:
            node = machine.tree.get(path)
            itself = node.data is not None or "d" in flags
            found = (
                [(target, node)]
                if itself
                else [(name, machine.tree.get(absolute(name, path))) for name in machine.tree.names(path)]
            )
        except TreeError as problem:
            lines.append(f"ls: cannot access '{target}': {problem}")
            status = 2
            continue
        if len(targets) > 1:
            lines.append(f"{target}:")
        shown = [(name, of) for name, of in found if itself or "a" in flags or not name.startswith(".")]
        if "l" not in flags:
            lines.append(("\n" if "1" in flags else "  ").join(name for name, _ in shown))
            continue
        if not itself:
            lines.append(f"total {4 * len(shown)}")
        lines += [long_line(name, of, machine.place.now) for name, of in shown]
    text = "\n".join(line for line in lines if line)
    return (f"{text}\n" if text else ""), status


@command("cat", "more", "less", "head", "tail", "dd")
def _cat(machine: Machine, words: list[str], piped: str) -> Answer:
    paths = [word.removeprefix("if=") for word in _paths(words) if "=" not in word or word.startswith("if=")]
    if not paths:
        return piped, 0
    printed: list[str] = []
    status = 0
    for target in paths:
        if sum(map(len, printed)) > MOST_LISTED:
            break
        try:
            node = machine.tree.get(absolute(target, machine.folder))
            if node.data is None:
                raise TreeError("Is a directory")
            printed.append(
                node.data.decode("latin-1")
                if node.data.startswith(b"\x7fELF")
                else node.data.decode("utf-8", "surrogateescape")
            )
        except TreeError as problem:
            printed.append(f"cat: {target}: {problem}\n")
            status = 1
    return "".join(printed), status


def _byte(number: int) -> str:
    """As surrogateescape has it, so that it is this byte again when it is written or said."""
    return chr(number) if number < 128 else chr(0xDC00 + number)


@command("echo", "printf")
def _echo(machine: Machine, words: list[str], piped: str) -> Answer:
    flags = ""
    while words and re.fullmatch(r"-[neE]+", words[0]):
        flags += words.pop(0)
    text = " ".join(words)
    if "e" in flags or re.search(r"\\x[0-9a-fA-F]{2}|\\[0-7]{3}", text):
        text = re.sub(r"\\x([0-9a-fA-F]{1,2})", lambda match: _byte(int(match[1], 16)), text)
        text = re.sub(r"\\0?([0-7]{3})", lambda match: _byte(int(match[1], 8) & 255), text)
        text = text.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
    return text + ("" if "n" in flags else "\n"), 0


@command("ps")
def _ps(machine: Machine, words: list[str], piped: str) -> Answer:
    lot = machine.identity.lot("processes")
    names = ["/sbin/init", "[kthreadd]", "[rcu_gp]", "/lib/systemd/systemd-journald", "/usr/sbin/cron -f",
             "/usr/sbin/sshd -D", "/sbin/agetty -o -p -- \\u --noclear tty1 linux", "-bash", "ps"]  # fmt: skip
    pid, lines = 0, ["    PID TTY          TIME CMD"]
    for name in names:
        pid += 1 if pid < 3 else lot.randint(20, 300)
        lines.append(f"{pid:>7} {'pts/0' if name in ('-bash', 'ps') else '?':<8} 00:00:{lot.randint(0, 9):02d} {name}")
    return "\n".join(lines) + "\n", 0


@command("w", "who", "uptime")
def _w(machine: Machine, words: list[str], piped: str) -> Answer:
    now = time.gmtime(machine.place.now)
    days, rest = divmod(machine.identity.uptime, 86400)
    load = machine.identity.lot("load")
    loads = ", ".join(f"0.{load.randint(0, 40):02d}" for _ in range(3))
    up = f"up {days} days, {rest // 3600:>2}:{rest % 3600 // 60:02d},  1 user,  load average: {loads}"
    head = f" {time.strftime('%H:%M:%S', now)} {up}"
    line = f"root     pts/0    {machine.place.src:<16} {time.strftime('%H:%M', now)}    0.00s  0.01s  0.00s w"
    return f"{head}\nUSER     TTY      FROM             LOGIN@   IDLE   JCPU   PCPU WHAT\n{line}\n", 0


@command("free")
def _free(machine: Machine, words: list[str], piped: str) -> Answer:
    total = machine.identity.memory_kib // (1024 if "-m" in words else 1)
    rows = (
        ("", ("total", "used", "free", "shared", "buff/cache", "available")),
        ("Mem:", (total, total * 2 // 5, total // 3, total // 90, total // 4, total // 2)),
        ("Swap:", (0, 0, 0)),
    )
    return "".join(f"{name:<8}{''.join(f'{cell:>12}' for cell in cells)}\n" for name, cells in rows), 0


@command("df", "mount")
def _df(machine: Machine, words: list[str], piped: str) -> Answer:
    size = machine.identity.lot("disk").choice((20, 40, 80, 160)) * 1024 * 1024
    head = "Filesystem     1K-blocks     Used Available Use% Mounted on"
    return f"{head}\n/dev/vda1      {size:>9} {size // 5:>8} {size * 3 // 4:>9}  21% /\n", 0


@command("nproc")
def _nproc(machine: Machine, words: list[str], piped: str) -> Answer:
    return f"{machine.identity.cores}\n", 0


@command("wget", "curl", "tftp", "ftpget", "ping", "nslookup", "nc", "ssh", "telnet")
def _fetch(machine: Machine, words: list[str], piped: str) -> Answer:
    """Says what a host without a way out says. That is all: nothing is looked up, nothing is connected to.

    Which of its commands this was is not known here: the words are those after it, and the answer is of wget's kind.
    """
    name = next((word for word in words if re.match(r"\w+://|\d+\.\d+\.\d+\.\d+", word)), "")
    name = name or next(iter(_paths(words)), "")
    host, _, port = re.sub(r"^\w+://", "", name).partition("/")[0][:128].partition(":")
    if not host:
        return "missing host\n", 1
    if re.fullmatch(r"[\d.]+", host):
        return f"Connecting to {host} ({host}:{port or 80})\nfailed: Connection timed out\n", 4
    return f"unable to resolve host address '{host}'\n", 4


@command("mkdir")
def _mkdir(machine: Machine, words: list[str], piped: str) -> Answer:
    for target in _paths(words):
        path, above = absolute(target, machine.folder), "-p" in words
        parts = path.strip("/").split("/")
        for end in range(1 if above else len(parts), len(parts) + 1):
            try:
                machine.tree.make("/" + "/".join(parts[:end]), machine.place.now)
            except TreeError as problem:
                if not (above and str(problem) == "File exists"):
                    return f"mkdir: cannot create directory '{target}': {problem}\n", 1
    return "", 0


@command("rm", "rmdir", "unlink")
def _rm(machine: Machine, words: list[str], piped: str) -> Answer:
    flags = "".join(word for word in words if word.startswith("-"))
    for target in _paths(words):
        try:
            machine.tree.remove(absolute(target, machine.folder), "r" in flags.lower())
        except TreeError as problem:
            if "f" not in flags or "No such" not in str(problem):
                return f"rm: cannot remove '{target}': {problem}\n", 1
    return "", 0


@command("touch")
def _touch(machine: Machine, words: list[str], piped: str) -> Answer:
    for target in _paths(words):
        try:
            machine.tree.write(absolute(target, machine.folder), b"", machine.place.now, append=True)
        except TreeError as problem:
            return f"touch: cannot touch '{target}': {problem}\n", 1
    return "", 0


@command("cp")
def _cp(machine: Machine, words: list[str], piped: str) -> Answer:
    return _copy(machine, words, "cp")


@command("mv")
def _mv(machine: Machine, words: list[str], piped: str) -> Answer:
    return _copy(machine, words, "mv")


def _copy(machine: Machine, words: list[str], name: str) -> Answer:
    paths = _paths(words)
    if len(paths) < 2:
        return f"{name}: missing file operand\n", 1
    try:
        node = machine.tree.get(absolute(paths[0], machine.folder))
        target = absolute(paths[-1], machine.folder)
        if (there := machine.tree.nodes.get(target)) and there.data is None:
            target = absolute(paths[0].rpartition("/")[2], target)
        machine.tree.write(target, node.data or b"", machine.place.now)
        machine.tree.changeable(target).mode = node.mode
        machine.tree.changeable(target).size = node.size
        if name == "mv":
            machine.tree.remove(absolute(paths[0], machine.folder))
    except (TreeError, KeyError) as problem:
        return f"{name}: cannot stat '{paths[0]}': {problem}\n", 1
    return "", 0


@command("chmod")
def _chmod(machine: Machine, words: list[str], piped: str) -> Answer:
    paths = [word for word in words if not word.startswith("-")]
    for target in paths[1:]:
        try:
            node = machine.tree.changeable(absolute(target, machine.folder))
        except TreeError as problem:
            return f"chmod: cannot access '{target}': {problem}\n", 1
        mode = paths[0]
        node.mode = (
            int(mode, 8) & 0o7777 if re.fullmatch(r"[0-7]{1,4}", mode) else node.mode | (0o111 if "x" in mode else 0)
        )
    return "", 0


@command("which", "type")
def _which(machine: Machine, words: list[str], piped: str) -> Answer:
    found = [f"/bin/{word}" for word in words if f"/bin/{word}" in machine.tree.nodes]
    return "".join(f"{path}\n" for path in found), 0 if found else 1


@command("grep")
def _grep(machine: Machine, words: list[str], piped: str) -> Answer:
    """Looks for the words as they stand: a stranger's expression is not run."""
    terms = _paths(words)
    if not terms:
        return "Usage: grep [OPTION]... PATTERNS [FILE]...\n", 2
    text = piped if len(terms) == 1 else _cat(machine, terms[1:], "")[0]
    lines = [line for line in text.splitlines() if terms[0] in line]
    if "-c" in words:
        return f"{len(lines)}\n", 0 if lines else 1
    return "".join(f"{line}\n" for line in lines), 0 if lines else 1


@command("date")
def _date(machine: Machine, words: list[str], piped: str) -> Answer:
    return time.strftime("%a %b %e %H:%M:%S UTC %Y\n", time.gmtime(machine.place.now)), 0


@command("wc")
def _wc(machine: Machine, words: list[str], piped: str) -> Answer:
    paths = _paths(words)
    text, status = _cat(machine, paths, piped) if paths else (piped, 0)
    counts = {"-l": text.count("\n"), "-w": len(text.split()), "-c": len(text.encode("utf-8", "surrogateescape"))}
    asked = [flag for flag in counts if flag in words] or list(counts)
    return " ".join([*(str(counts[flag]) for flag in asked), *paths]) + "\n", status


@command("[", "test")
def _test(machine: Machine, words: list[str], piped: str) -> Answer:
    words = [word for word in words if word != "]"]
    if words[:1] == ["!"]:
        return "", 1 - _test(machine, words[1:], piped)[1]
    if len(words) == 3:
        same = words[0] == words[2]
        return "", 0 if (same if words[1] in ("=", "==", "-eq") else not same) else 1
    if len(words) == 2 and words[0] in ("-n", "-z"):
        return "", 0 if bool(words[1]) == (words[0] == "-n") else 1
    if len(words) == 2:
        node = machine.tree.nodes.get(absolute(words[1], machine.folder))
        wanted = {"-d": node is not None and node.data is None, "-f": node is not None and node.data is not None}
        return "", 0 if wanted.get(words[0], node is not None) else 1
    return "", 0 if words and words[0] else 1


@command("env", "printenv", "set")
def _env(machine: Machine, words: list[str], piped: str) -> Answer:
    return "".join(f"{name}={value}\n" for name, value in machine.variables.items()), 0


@command("exit", "logout", "quit")
def _exit(machine: Machine, words: list[str], piped: str) -> Answer:
    machine.ended = True
    return "logout\n", 0


_SILENT = (
    "export", "set", "unset", "sleep", "sync", "ulimit", "history", "kill", "killall", "pkill", "chattr", "true",
    "iptables", "crontab", "chown", "passwd", "service", "systemctl", "nvram", "clear", "stty", "trap", ":",
)  # fmt: skip


@command(*_SILENT)
def _quiet(machine: Machine, words: list[str], piped: str) -> Answer:
    return "", 0


@command("false")
def _false(machine: Machine, words: list[str], piped: str) -> Answer:
    return "", 1
