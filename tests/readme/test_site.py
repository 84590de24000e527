"""The site of the documentation: every page is in its navigation, and MkDocs builds it without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_parsers import ROOT

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
needs_mkdocs = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mkdocs", "material")),
    reason="needs MkDocs with its theme Material: pip install -e '.[docs]'",
)


def pages(nav: Any) -> list[str]:
    """Every page of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = pages(CONFIG["nav"])
    assert len(listed) == len(set(listed))
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    written |= {"measurements.md", "notebook.md", "contributing.md"}
    written |= {f"data/{path.name}" for path in (ROOT / "data").glob("*.md")}
    assert written == set(listed)


@needs_mkdocs
def test_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert not re.search(r"^WARNING", done.stderr, re.MULTILINE)
    built = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "faq.html", "data/index.html", "data/dtu.html", "measurements.html"} <= built
    assert not list(tmp_path.rglob("*.py"))
    # from docs/ to data/ and back, where the repository has ../data/ and ../docs/
    assert 'href="data/index.html"' in (tmp_path / "export.html").read_text()
    card = (tmp_path / "data" / "posed.html").read_text()
    assert 'href="../geometry.html"' in card and "../docs/" not in card
    # nothing is asked of anybody else's server
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', (tmp_path / "index.html").read_text())


@needs_mkdocs
def test_links_become_those_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    assert spec is not None and spec.loader is not None
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    monkeypatch.delenv("RECONX_REPOSITORY", raising=False)
    assert site.rewritten("[a](../data/dtu.md#x) [b](install.md)", "export.md") == "[a](data/dtu.md#x) [b](install.md)"
    assert site.rewritten("[m](../benchmarks/README.md)", "splatting.md") == "[m](measurements.md)"
    assert site.rewritten("[g](../docs/geometry.md) [c](dtu.md)", "data/posed.md") == "[g](../geometry.md) [c](dtu.md)"
    assert site.rewritten("[d](docs/install.md)", "contributing.md") == "[d](install.md)"
    assert site.rewritten("[h](#here) [w](https://a.org/b)", "a.md") == "[h](#here) [w](https://a.org/b)"
    code = "```\n[a](../data/dtu.md)\n```\n"
    assert site.rewritten(code, "export.md") == code
    assert site.rewritten("[`fsdp`](../configs/trainer/fsdp.yaml).", "training.md") == "`fsdp`."
    monkeypatch.setenv("RECONX_REPOSITORY", "https://github.com/o/n/")
    linked = "[`f`](https://github.com/o/n/blob/main/configs/slurm.yaml)"
    assert site.rewritten("[`f`](../configs/slurm.yaml)", "slurm.md") == linked
