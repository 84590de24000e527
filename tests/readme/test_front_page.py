"""README.md: short, with a picture, in the words that a newcomer looks for; old words have one place."""

from __future__ import annotations

import re

import pytest
from command_parsers import ROOT
from test_links import DOCUMENTS, links

README = (ROOT / "README.md").read_text()


def test_the_front_page_is_short_and_begins_with_a_small_picture() -> None:
    assert len(README.splitlines()) <= 150
    picture = next(links(README))
    assert picture.endswith((".jpg", ".png")) and (ROOT / picture).stat().st_size <= 300_000
    assert README.index(picture) < README.index("## ")


@pytest.mark.parametrize(
    "words",
    ["novel view synthesis", "inference", "sparse-view", "make demo", "make test", "model zoo", "docs/status.md"],
)
def test_the_front_page_has_the_words_of_the_field(words: str) -> None:
    assert words in README.lower()


def test_nine_files_lead_into_the_code() -> None:
    part = README.split("## Dive into the code")[1].split("\n## ")[0]
    assert len(re.findall(r"^\| \[[\w/]+\.py\]\(reconx_pl/", part, re.MULTILINE)) == 9


def test_old_words_stand_in_the_table_of_old_names_alone() -> None:
    old = re.compile(r"\bpaint", re.IGNORECASE)
    assert [path.name for path in DOCUMENTS if old.search(path.read_text())] == ["conventions.md"]
