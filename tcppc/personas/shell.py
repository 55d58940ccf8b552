"""A greeting and a root prompt; answers for what droppers and people type first (commands.py)."""

from __future__ import annotations

from tcppc.personas.base import MOST_SAID, LineTalk, Place
from tcppc.personas.commands import Machine
from tcppc.personas.identity import Identity
from tcppc.personas.terminal import ECHOES, Editing, Options, pieces

MOST_COMMANDS = 40
"""Commands of one line, at most."""


def split(line: str) -> list[tuple[str, str]]:
    """A line's commands, each with what joins it to the one before: "" ; & && || |. Quotes keep joints together."""
    found, joint, start, quote, index = [], "", 0, "", 0
    while index < len(line):
        letter = line[index]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "\\":
            index += 1
        elif letter in ";&|":
            found.append((joint, line[start:index]))
            joint = letter * 2 if letter != ";" and line[index + 1 : index + 2] == letter else letter
            index += len(joint) - 1
            start = index + 1
        index += 1
    found.append((joint, line[start:]))
    return [(joint, text.strip()) for joint, text in found if text.strip()]


class Shell(LineTalk):
    """No login: the door is open, as it was at thp's."""

    name = "shell"
    about = "a greeting and a root prompt, with a small file system and the commands that droppers type first"
    speaks_first = True
    most_heard = 256 << 10  # it looks at each byte

    def __init__(self, identity: Identity, place: Place, machine: Machine | None = None) -> None:
        super().__init__(identity, place)
        self._machine = machine
        self._options = Options()
        self._editing: Editing | None = None

    @property
    def machine(self) -> Machine:
        """Made when it is first needed: most who are greeted type nothing."""
        if self._machine is None:
            self._machine = Machine(self.identity, self.place)
        return self._machine

    def held(self) -> int:
        return super().held() + (self._machine.held() if self._machine else 0)

    def greet(self) -> bytes:
        return f"{self.identity.choose('fortune', _SAYINGS)}\r\n\r\n".encode() + self.prompt()

    def prompt(self) -> bytes:
        folder = self._machine.folder if self._machine and self._machine.folder != "/root" else "~"
        return f"root@{self.identity.host}:{folder}# ".encode("utf-8", "surrogateescape")

    def hear(self, data: bytes) -> bytes:
        """A telnet client that says so is given what it needs: its characters echoed, and a line that can be edited."""
        text = self._options.plain(data)
        if not self._options.spoken:
            return super().hear(text)
        said = bytearray(self._options.take())
        if self._editing is None:
            self._editing = Editing()
            said += ECHOES
        for piece in pieces(text):
            echoed, lines = self._editing.type(piece)
            said += echoed
            for line in lines:
                said += self.line(line)
            if self.done or len(said) > MOST_SAID:
                break
        return bytes(said)

    def line(self, line: bytes) -> bytes:
        said = self.run(line.decode("utf-8", "surrogateescape"))
        self.done = self.machine.ended
        return said if self.done else said + self.prompt()

    def run(self, line: str) -> bytes:
        """What a line of commands prints."""
        output: list[str] = []
        status, piped = 0, None
        for joint, text in split(line)[:MOST_COMMANDS]:
            if (joint == "&&" and status) or (joint == "||" and not status):
                continue
            if joint == "|" and output:
                piped = output.pop()
            printed, status = self.machine.run(text, piped if joint == "|" else None)
            output.append(printed)
            if self.machine.ended:
                break
        return "".join(output).replace("\r\n", "\n").replace("\n", "\r\n").encode("utf-8", "surrogateescape")


# Old sayings that belong to nobody.
_SAYINGS = (
    "A watched pot never boils.", "All that glitters is not gold.", "Better late than never.",
    "Every cloud has a silver lining.", "Fortune favours the bold.", "Haste makes waste.",
    "Least said, soonest mended.", "Look before you leap.", "Many hands make light work.",
    "No news is good news.", "Practice makes perfect.", "Still waters run deep.", "The early bird catches the worm.",
    "Too many cooks spoil the broth.", "Where there is smoke, there is fire.",
)  # fmt: skip

TALK = Shell
