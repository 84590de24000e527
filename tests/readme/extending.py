"""The snippets of docs/extending.md, for the tests that run them and that parse the page's commands."""

from __future__ import annotations

import re
from pathlib import Path

from command_parsers import ROOT

PAGE = ROOT / "docs" / "extending.md"


def snippets() -> list[str]:
    """The Python blocks of the page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def write_modules(folder: Path) -> list[str]:
    """Write every block that begins with the name of a file; return the names."""
    named = {match[1]: block for block in snippets() if (match := re.match(r"# (\w+\.py)\n", block))}
    for name, block in named.items():
        (folder / name).write_text(block)
    return sorted(named)
