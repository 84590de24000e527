"""Every link of the documents leads somewhere: files and headings in the repository, addresses of a sane form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from command_parsers import ROOT

DOCUMENTS = [
    *(
        ROOT / name
        for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/NOTEBOOK.md")
    ),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "data").glob("*.md")),
]
# Pages that are written elsewhere and not here yet: also named in mkdocs.yml. Empty this when they are.
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINKS = (
    re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]*)\)"),  # [text](target), ![text](target)
    re.compile(r"<(https?:[^<>\s]*)>"),
    re.compile(r"^\[[^\[\]]+\]:\s+(\S+)", re.MULTILINE),
)
# a file that is named in code font: from the root, from the package's folder, or from the document's
NAMED = re.compile(r"`((?:\.\./)*(?:docs|data|configs|protocols|tests|reconx_pl)/[\w./-]+\.(?:md|py|yaml|sbatch))`")


def prose(text: str) -> str:
    """A document without what it quotes: no link is one there."""
    return re.sub(r"`[^`\n]*`", "``", FENCED.sub("", text))


def links(text: str) -> Iterator[str]:
    for pattern in LINKS:
        yield from pattern.findall(prose(text))


def anchors(text: str) -> set[str]:
    """Anchors of a document's headings, as the usual viewers of Markdown make them; a second one of a name gets -1."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", FENCED.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\[\]]*)\]\([^()]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while (name := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(name)
    return found


def dead(target: str, document: Path) -> str | None:
    """Why a link leads nowhere; None if it does not."""
    if "://" in target:
        parts = urlsplit(target)
        sane = parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc)
        return None if sane and not target.endswith((".", ",", ";")) else "no address"
    path, _, anchor = target.partition("#")
    file = (document.parent / path).resolve() if path else document
    if not file.is_relative_to(ROOT):
        return "outside the repository"
    if not file.exists():
        return "no such file"
    if anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text())):
        return "no such heading"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    assert {target: why for target in links(text) if (why := dead(target, document))} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_named_in_code_font_exist(document: Path) -> None:
    named = set(NAMED.findall(FENCED.sub("", document.read_text())))
    folders = (ROOT, ROOT / "reconx_pl", document.parent)
    assert {name for name in named if not any((folder / name).exists() for folder in folders)} == set()


def test_links_are_found_and_judged() -> None:
    text = "[a](x.md) ![b](y.png) <https://z.org> `[c](code)`\n```\n[d](fenced)\n```\n[e]: https://w.org\n[[f] g](h#i)"
    assert sorted(links(text)) == ["h#i", "https://w.org", "https://z.org", "x.md", "y.png"]
    assert anchors("# One `two`, three\n```\n# no\n```\n## [A](b) & c\n## Same\n## Same\n") == {
        *("one-two-three", "a--c", "same", "same-1"),
    }
    page = ROOT / "docs" / "install.md"
    assert dead("rendering.md#on-a-gpu", page) is None and dead("../data/README.md", page) is None
    assert dead("https://arxiv.org/abs/2408.16767", page) is None and dead("#lpips-weights", page) is None
    assert dead("renderings.md", page) == dead("data/README.md", page) == "no such file"
    assert dead("rendering.md#on-a-gpus", page) == dead("../LICENSE#x", page) == "no such heading"
    assert dead("../../elsewhere.md", page) == "outside the repository"
    assert {dead(target, page) for target in ("http://a.org", "https://nothing", "https://a.org.")} == {"no address"}
