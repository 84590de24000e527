"""Every command that the documents show parses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_parsers import ROOT, plan_parser, train_parser
from jsonargparse import ArgumentParser

from reconx_pl.cli.evaluate_command import build_evaluate_parser, names_protocol
from reconx_pl.cli.main import build_parser

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "data").glob("*.md"))]
COMMAND = re.compile(
    r"^(?:\.venv/bin/)?((?:python train\.py|reconx train)(?: plan)?|python evaluate\.py|reconx evaluate|reconx) (.+)$"
)
SAME = {"reconx train": "python train.py", "reconx evaluate": "python evaluate.py"}
PARSERS = {
    "reconx": build_parser,
    "python train.py plan": plan_parser,
    "python train.py": train_parser,
    "python evaluate.py": build_evaluate_parser,
}


def commands(text: str) -> list[tuple[str, str]]:
    """(program, arguments) of the commands in the fenced blocks of a document."""
    found, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced and (match := COMMAND.match(line)):
            program = match[1]
            for name, script in SAME.items():
                program = program.replace(name, script)
            found.append((program, match[2]))
    return found


def documented() -> list:
    return [
        pytest.param(program, arguments, id=f"{path.relative_to(ROOT)}: {program} {arguments}")
        for path in DOCUMENTS
        for program, arguments in commands(path.read_text())
    ]


def parse(program: str, arguments: str, folder: Path) -> None:
    """Parse and check a command line; SOURCE, OUT and <placeholders> become paths."""
    arguments = re.sub(r"<[^<>]+>|\b(SOURCE|OUT|SCENE)\b", str(folder / "placeholder"), arguments)
    words = shlex.split(arguments, comments=True)
    protocol = program == "python evaluate.py" and names_protocol(words)
    parser: ArgumentParser = build_evaluate_parser(protocol=True) if protocol else PARSERS[program]()
    parsed = parser.parse_args(words)
    if not program.startswith("python train.py"):  # there it would build the network
        parser.instantiate_classes(parsed)


@pytest.mark.usefixtures("documented_modules")
@pytest.mark.parametrize(("program", "arguments"), documented())
def test_documented_command_parses(
    program: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    parse(program, arguments, tmp_path)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("reconx", "pack SOURCE OUT --options.size '[512, 512]'"),
        ("reconx", "pack SOURCE"),
        ("reconx", "procedural OUT --clip 3"),
        ("python train.py", "fit -c configs/stage1.yaml --trainer.steps 100"),
        ("python evaluate.py", "--model OUT --out OUT --progress print"),
        ("python evaluate.py", "--protocol llff --shards OUT --data OUT --out OUT"),
        ("reconx", "protocols check llff"),
    ],
)
def test_wrong_command_does_not_parse(
    program: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        parse(program, arguments, tmp_path)
    assert stopped.value.code == 2


def test_commands_are_found() -> None:
    text = "reconx pack a b\n```bash\n.venv/bin/reconx pack a b  # c\npython train.py fit -c x\nls\n```\nreconx pack"
    assert commands(text) == [("reconx", "pack a b  # c"), ("python train.py", "fit -c x")]
    assert commands("```\nreconx train plan -c x\nreconx evaluate --out a\n```") == [
        ("python train.py plan", "-c x"),
        ("python evaluate.py", "--out a"),
    ]
    assert {program for path in DOCUMENTS for program, _ in commands(path.read_text())} == set(PARSERS)
