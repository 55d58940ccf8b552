"""The documents keep to the code: warnings, links, commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]

# What the log says while all is well: tcppc-go's words, and those of a start, a reload and a stop.
ALL_IS_WELL = (
    "Server Mode: ", "Listen: ", "Start ", "Sessions: ", "Exit.", "Reloaded.", "Maximum number of file descriptors: ",
    "Timezone: ", "Timeout: ", "Session data file: ", "Certificate: ", "Create directories: ",
    "Created a session file: ", "Wrote ", "Passed by the service manager: ", "Listening on ", "Bound",
    "Connection received on ", "Rules: taken away.", "Capabilities: ", "Watch: ", "Metrics: http", "Disk: ",
)  # fmt: skip


def said() -> Iterator[str]:
    """What each call of a log has as its first words: the text before the first value, or after one that leads."""
    for path in (ROOT / "tcppc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("log", "_log", "say", "_say"):
                parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
                texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
                if texts:
                    yield texts[0]


def test_every_warning_of_the_log_is_explained() -> None:
    explained = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition("What each warning means")[2]
    # A place holder stands for a value: N, FILE, FOLDER or three dots.
    patterns = re.findall(r"^\| `(.+?)` \|", explained, re.MULTILINE)
    assert len(patterns) > 20
    for words in said():
        if words.startswith(ALL_IS_WELL) or len(words.strip()) < 4:
            continue
        shown = words.strip(" :;").split(": ")[0]
        assert any(shown[:20] in pattern or pattern in shown for pattern in patterns), words


def test_every_link_between_documents_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document}: {target}"
