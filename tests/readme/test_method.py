"""docs/method.md: every equation of the paper has a file, and that file implements what the page says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from command_parsers import ROOT

PACKAGE = ROOT / "reconx_pl"
PAGE = (ROOT / "docs" / "method.md").read_text()
# (first cell, equation as the page writes it, file of its row, what that file says of it)
EQUATIONS = [
    (
        "IV-C, eq. 9",
        "C_i^{v,e} * ‖ P_i^v - s_e T_e P_i^{v,e} ‖",
        "geometry/alignment/objective.py",
        "|P_i - s_e (R_e X_ii",
    ),
    (
        "IV-C, eq. 10",
        "F(P) = FFN(CrossAttn(PosEmb(P~), PosEmb(P)))",
        "diffusion/conditioning/structure.py",
        None,
    ),
    (
        "IV-C",
        "sin and cos of 2^k * pi * p",
        "diffusion/conditioning/structure.py",
        "sines and cosines of 2^k pi p",
    ),
    (
        "IV-C",
        "down-sampled to 1/8 by farthest point sampling",
        "geometry/farthest_point.py",
        "Farthest point sampling",
    ),
    (
        "IV-D, eq. 11",
        "F_out = Attn(Q, K_g, V_g) + lambda_F * Attn(Q, K_F, V_F)",
        "diffusion/attention.py",
        "Attn(Q, K_F, V_F)",
    ),
    ("IV-D, eq. 11", "lambda_F = tanh(alpha)", "diffusion/attention.py", None),
    ("IV-D, eq. 11", "alpha = 0", "diffusion/attention.py", "torch.zeros(1)"),
    (
        "IV-D, V-A",
        "e = e_0 + s_view (e_view - e_0) + s_struct (e_view+struct - e_view)",
        "diffusion/sampling/guidance.py",
        "s_view (e_view",
    ),
    ("IV-E, eq. 14", "L = sum_i C_i (0.8 * L1 + 0.2 * L_ssim + 0.5 * L_lpips)", "splatting/losses.py", None),
]
SECTION = re.compile(r"\b(?:IV|V)-[A-E]\b")


def rows() -> list[tuple[str, str, str]]:
    """(sections and equation, what, files) of the page's first table."""
    found = re.findall(r"^\| ([^|]+?) \| (.+?) \| ([^|]+?) \|$", PAGE.split("\n## ")[0], re.MULTILINE)
    return [row for row in found if row[0] not in ("ReconX", "---")]


def files(cell: str) -> list[str]:
    return re.findall(r"`([\w/]+(?:\.py|/))`", cell)


def compact(text: str) -> str:
    """Without what Markdown and line breaks change: an equation is the same then wherever it stands."""
    return re.sub(r"[\s*\\`]", "", text.replace("||", "‖"))


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a module, as ``name`` and ``Class.name``."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("section", ["IV-C", "IV-D", "IV-E", "V-A", "V-D", "V-E"])
def test_every_section_of_the_paper_has_its_files(section: str) -> None:
    assert [name for cited, _, cell in rows() if section in SECTION.findall(cited) for name in files(cell)]


@pytest.mark.parametrize(("cited", "equation", "file", "says"), EQUATIONS, ids=lambda value: str(value)[:30])
def test_every_equation_has_a_row_and_its_file_states_it(
    cited: str, equation: str, file: str, says: str | None
) -> None:
    (cell,) = [cell for first, what, cell in rows() if first == cited and f"`{equation}`" in what]
    assert file in files(cell)
    assert compact(says or equation) in compact((PACKAGE / file).read_text())


def test_equations_are_those_of_the_paper(shared_dir: Path) -> None:
    paper = compact((shared_dir / "PAPER.md").read_text())
    assert [equation for _, equation, _, _ in EQUATIONS if compact(equation) not in paper] == []


def test_files_and_names_of_the_page_exist() -> None:
    assert [name for _, _, cell in rows() for name in files(cell) if not (PACKAGE / name).exists()] == []
    named = re.findall(r"`([\w/]+\.py)` \(`([\w.]+)`\)", PAGE)
    assert len(named) >= 4
    assert [pair for pair in named if pair[1] not in defined(PACKAGE / pair[0])] == []


def test_modules_that_cite_a_section_stand_in_its_row() -> None:
    listed = {
        (section, name) for cited, _, cell in rows() for section in SECTION.findall(cited) for name in files(cell)
    }
    for path in PACKAGE.rglob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        cited = SECTION.findall(first) if "ReconX" in first else []
        name = path.relative_to(PACKAGE).as_posix()
        assert not cited or any((section, name) in listed for section in cited), f"{name} cites {cited} of the paper"


def test_the_paper_is_cited_by_its_own_sections() -> None:
    digest = re.compile(r"PAPER[:,]? (?:sections? )\d")
    assert [path.name for path in PACKAGE.rglob("*.py") if digest.search(path.read_text())] == []
