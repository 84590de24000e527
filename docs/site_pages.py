"""Hook of MkDocs: pages that live outside ``docs/`` join the site, and links between all of them keep working.

The Markdown is written for the repository, where ``../data/dtu.md`` is right; every text exists once. Here the cards of
``data/``, results and notebook of ``benchmarks/`` and the rules for contributors become pages, and each relative link
is turned into one to the page of the site. A link to what is no page (a configuration, a source file) leads to the
repository where ``RECONX_REPOSITORY`` names its address, such as https://github.com/owner/name, and is plain text
elsewhere.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[((?:[^\[\]]|`[^`\n]*`)*)\]\(([^()\s]+)\)")


def outside_pages() -> dict[str, str]:
    """Page of the site for every Markdown file outside ``docs/``: path in the repository -> path in the site."""
    pages = {f"data/{path.name}": f"data/{path.name}" for path in (ROOT / "data").glob("*.md")}
    return {
        **pages,
        "benchmarks/README.md": "measurements.md",
        "benchmarks/NOTEBOOK.md": "notebook.md",
        "CONTRIBUTING.md": "contributing.md",
    }


def repository_path(src_uri: str) -> str:
    """Where a page of the site stands in the repository."""
    return {page: path for path, page in outside_pages().items()}.get(src_uri, f"docs/{src_uri}")


def site_link(target: str, src_uri: str) -> str | None:
    """What a link in the page ``src_uri`` is called in the site; None where it leads to no page."""
    if "://" in target or target.startswith(("#", "mailto:")):
        return target
    path, _, anchor = target.partition("#")
    aimed = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(src_uri)), path))
    page = outside_pages().get(aimed, aimed.removeprefix("docs/") if aimed.startswith("docs/") else None)
    if aimed == "README.md":
        page = "index.md"
    if page is not None:
        return posixpath.relpath(page, posixpath.dirname(src_uri) or ".") + (f"#{anchor}" if anchor else "")
    repository = os.environ.get("RECONX_REPOSITORY", "").rstrip("/")
    return f"{repository}/blob/main/{aimed}" if repository else None


def rewritten(markdown: str, src_uri: str) -> str:
    """The Markdown of a page with its links turned into those of the site; code is left alone."""

    def link(match: re.Match[str]) -> str:
        target = site_link(match[2], src_uri)
        return match[1] if target is None else f"[{match[1]}]({target})"

    fenced = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in fenced.split(markdown))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings get the anchors that they have in the repository's own view of the files."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside."""
    for path, page in outside_pages().items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """See ``rewritten``."""
    return rewritten(markdown, page.file.src_uri)
