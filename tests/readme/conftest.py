"""What the documents' commands import."""

from __future__ import annotations

import pytest
from extending import write_modules


@pytest.fixture
def documented_modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that docs/extending.md lets a user write, on the Python path."""
    folder = tmp_path_factory.mktemp("modules")
    names = write_modules(folder)
    monkeypatch.syspath_prepend(folder)
    return names
