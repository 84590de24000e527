"""Python that the documents show: it compiles, and what it imports and calls by keyword is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from command_parsers import ROOT
from extending import PAGE
from test_links import DOCUMENTS

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# test_extending.py runs what that page shows
SHOWN = [(path, block) for path in DOCUMENTS if path != PAGE for block in BLOCK.findall(path.read_text())]


def wrong(code: str) -> list[str]:
    """Imports that fail, and keywords of calls of what was imported that it does not take."""
    tree, names, found = ast.parse(code), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module: Any = importlib.import_module(node.module)
            for alias in node.names:
                if hasattr(module, alias.name):
                    names[alias.asname or alias.name] = getattr(module, alias.name)
                else:
                    found.append(f"{node.module} has no {alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            taken = inspect.signature(names[node.func.id]).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
                found += [f"{node.func.id} takes no {key.arg}" for key in node.keywords if key.arg not in taken]
    return found


@pytest.mark.parametrize(
    ("path", "block"), SHOWN, ids=[f"{path.relative_to(ROOT)}: {number}" for number, (path, _) in enumerate(SHOWN)]
)
def test_python_is_true(path: Path, block: str) -> None:
    assert wrong(block) == []


def test_untrue_python_is_seen() -> None:
    assert len(SHOWN) >= 8
    assert wrong("from reconx_pl.data.photos.posed_clip import load_ran") == [
        "reconx_pl.data.photos.posed_clip has no load_ran"
    ]
    called = "from reconx_pl.data.photos.posed_clip import SceneWindow\n"
    called += "SceneWindow(frames=8, height=4)\nSceneWindow(frame=8)"
    assert wrong(called) == ["SceneWindow takes no frame"]
