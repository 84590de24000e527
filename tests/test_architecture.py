"""Guards the layout: imports lead downstairs and in no circle, files are small and named after what is in them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import Graph, arrows, circles, import_graph, sources

PACKAGE = Path(__file__).resolve().parents[1] / "reconx_pl"
CODE = sources(PACKAGE)
# A room imports itself and rooms of lower floors: neither upwards nor its neighbours on the same floor.
FLOORS = (  # from the bottom
    ("errors", "version"),
    ("types", "devices", "renamed"),
    ("files",),
    ("metrics",),
    ("geometry",),
    ("data",),
    ("splatting",),
    ("diffusion",),
    ("visualization", "pretrained"),
    ("reconstruction",),
    ("evaluation",),
    ("training",),
    ("cli", "api"),
    ("__init__", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES_AT_THE_TOP = 8
LINES = 400
VAGUE = {"utils", "util", "misc", "common", "helpers", "helper", "shared", "stuff", "tools"}
OPTIONAL = {"torchvision", "gsplat", "lpips", "open_clip", "pycolmap", "viser"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def wrong_arrows(graph: Graph) -> list[str]:
    """Imports that do not lead to a lower floor."""
    between = [(a, b) for a, b in arrows(graph) if room(a) != room(b)]
    return [f"{a} -> {b}" for a, b in between if FLOOR[room(b)] >= FLOOR[room(a)]]


def test_every_room_has_its_floor() -> None:
    assert sorted({room(module) for module in CODE} - set(FLOOR)) == [], "a new room needs its place in FLOORS"


def missing_modules(graph: Graph) -> list[str]:
    """Imports of modules that are not there: mypy takes them for those of a package without types."""
    return [f"{a} -> {b}" for a, b in arrows(graph) if b not in graph]


def test_every_module_that_is_imported_is_there() -> None:
    assert missing_modules(import_graph(CODE | sources(PACKAGE.parent / "benchmarks"))) == []


def test_imports_lead_downstairs() -> None:
    found = wrong_arrows(import_graph(CODE))
    assert not found, "\n".join(found)


def test_nothing_imports_in_a_circle() -> None:
    found = circles(import_graph(CODE))
    assert not found, "\n".join("\n    ".join((names, *between)) for names, between in found.items())


def test_the_map_of_contributing_names_every_room_and_every_sub_room() -> None:
    rows = [line for line in (PACKAGE.parent / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)/`", "\n".join(rows)))
    assert named == {folder.name for folder in PACKAGE.rglob("*/") if list(folder.glob("*.py"))} - {PACKAGE.name}


def graph_of(modules: dict[str, str]) -> Graph:
    return import_graph({"reconx_pl": ""} | {f"reconx_pl.{name}": text for name, text in modules.items()})


@pytest.mark.parametrize(
    "code",
    [
        "from reconx_pl.data.stream import Stream",
        "from reconx_pl.data import stream as types",
        "import reconx_pl.data.stream",
        "def f():\n    from reconx_pl.data.stream import Stream",
        "if ready:\n    from reconx_pl.data.stream import Stream",
        "if TYPE_CHECKING:\n    A = 1\nelse:\n    from reconx_pl.data.stream import Stream",
        "if not TYPE_CHECKING:\n    from reconx_pl.data.stream import Stream",
    ],
)
def test_an_arrow_upstairs_is_seen(code: str) -> None:
    graph = graph_of({"geometry.cameras": code, "data.stream": ""})
    assert wrong_arrows(graph) == ["reconx_pl.geometry.cameras -> reconx_pl.data.stream"]


def test_an_import_of_a_module_that_is_not_there_is_seen() -> None:
    graph = graph_of({"types": "from reconx_pl.geometry.old import Cameras", "geometry": "", "geometry.new": ""})
    assert missing_modules(graph) == ["reconx_pl.types -> reconx_pl.geometry.old"]


def test_an_arrow_to_a_neighbour_is_seen() -> None:
    graph = graph_of({"splatting.fit": "from reconx_pl.diffusion.model import A", "diffusion.model": ""})
    assert wrong_arrows(graph) == ["reconx_pl.splatting.fit -> reconx_pl.diffusion.model"]


def test_arrows_downstairs_within_a_room_and_of_types_alone_are_right() -> None:
    types = "import torch\nif TYPE_CHECKING:\n    from reconx_pl.data.datamodule import A"
    module = "from torchmetrics import cli\nfrom reconx_pl.types import A\nfrom reconx_pl.data.stream import B"
    assert wrong_arrows(graph_of({"types": types, "data.stream": types, "data.datamodule": module})) == []


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reconx_pl\.data\.stream, line 2: imports are absolute"):
        graph_of({"data.stream": "import torch\nfrom . import datamodule"})


def test_a_circle_of_modules_is_seen() -> None:
    graph = graph_of(
        {
            "data.a": "from reconx_pl.data.b import x",
            "data.b": "def f():\n    from reconx_pl.data.c import x",
            "data.c": "from reconx_pl.data.a import x",
            "data.d": "from reconx_pl.data.a import x",
        }
    )
    assert circles(graph) == {
        "reconx_pl.data.a, reconx_pl.data.b, reconx_pl.data.c": [
            "reconx_pl.data.a -> reconx_pl.data.b",
            "reconx_pl.data.b -> reconx_pl.data.c",
            "reconx_pl.data.c -> reconx_pl.data.a",
        ]
    }


def test_circles_of_rooms_and_of_sub_rooms_are_seen_where_no_modules_are_in_one() -> None:
    graph = graph_of(
        {
            "data.photos.a": "from reconx_pl.data.formats.b import x",
            "data.photos.b": "",
            "data.formats.a": "from reconx_pl.data.photos.b import x",
            "data.formats.b": "from reconx_pl.metrics.a import x",
            "metrics.a": "",
            "metrics.b": "from reconx_pl.data.photos.a import x",
        }
    )
    assert circles(graph) == {
        "reconx_pl.data, reconx_pl.metrics": [
            "reconx_pl.data.formats.b -> reconx_pl.metrics.a",
            "reconx_pl.metrics.b -> reconx_pl.data.photos.a",
        ],
        "reconx_pl.data.formats, reconx_pl.data.photos": [
            "reconx_pl.data.formats.a -> reconx_pl.data.photos.b",
            "reconx_pl.data.photos.a -> reconx_pl.data.formats.b",
        ],
    }


def test_a_file_may_stand_above_a_sub_room_and_another_below_it() -> None:
    above, within = "from reconx_pl.data.shards.a import x", "from reconx_pl.data.shapes import x"
    assert circles(graph_of({"data.datamodule": above, "data.shards.a": within, "data.shapes": ""})) == {}


def layout_faults(package: Path) -> list[str]:
    """What is wrong with names, sizes and folders of a package."""
    files = sorted(package.rglob("*.py"))
    top = [path for path in files if path.parent == package]
    faults = [f"{len(top)} files at the top, at most {FILES_AT_THE_TOP}"] if len(top) > FILES_AT_THE_TOP else []
    for path in files:
        name, lines = path.relative_to(package).as_posix(), len(path.read_text().splitlines())
        if lines > LINES:
            faults.append(f"{name} has {lines} lines, at most {LINES}")
        if VAGUE & set(path.relative_to(package).with_suffix("").parts):
            faults.append(f"{name} does not say what is in it")
    for folder in sorted({path.parent for path in files}):
        init = folder / "__init__.py"
        if not init.is_file() or not ast.get_docstring(ast.parse(init.read_text())):
            faults.append(f"{init.relative_to(package).as_posix()} with a docstring is missing")
    return faults


def test_files_are_few_at_the_top_small_and_named_after_what_is_in_them() -> None:
    assert layout_faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("data/__init__.py", "", "data/__init__.py with a docstring is missing"),
        ("data/stream.py", "", "data/__init__.py with a docstring is missing"),
        ("stream.py", "\n" * (LINES + 1), "stream.py has 401 lines, at most 400"),
        ("utils.py", "", "utils.py does not say what is in it"),
        ("common/__init__.py", '"""Room."""', "common/__init__.py does not say what is in it"),
    ],
)
def test_a_fault_of_the_layout_is_seen(tmp_path: Path, name: str, text: str, fault: str) -> None:
    (tmp_path / "__init__.py").write_text('"""A package."""')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert layout_faults(tmp_path) == [fault]


def test_too_many_files_at_the_top_are_seen(tmp_path: Path) -> None:
    for number in range(FILES_AT_THE_TOP):
        (tmp_path / f"room{number}.py").touch()
    (tmp_path / "__init__.py").write_text('"""A package."""')
    assert layout_faults(tmp_path) == ["9 files at the top, at most 8"]


def unpickling(tree: ast.AST) -> list[str]:
    """What in a module's code could unpickle a file, as "line what"."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
            if bases & {"Unpickler", "_Unpickler"}:
                found.append(f"{node.lineno} class {node.name}(Unpickler)")
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if call == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{node.lineno} torch.load without weights_only=True")
        if call in {"np.load", "numpy.load"} and given.get("allow_pickle", "False") != "False":
            found.append(f"{node.lineno} np.load(allow_pickle=True)")
        if call in {"pickle.load", "pickle.loads", "pickle.Unpickler", "Unpickler"}:
            found.append(f"{node.lineno} {call}")
    return found


UNPICKLERS = {
    # Reads one archive, whose pinned SHA-256 is verified before it is opened, and builds numpy arrays only.
    ("metrics/lpips_weights.py", "class _ArraysOnly(Unpickler)"),
    # Reads the table of a sharded checkpoint, which torch pickles, and builds a dozen named data classes only.
    ("training/checkpointing/sharded_checkpoint.py", "class _TableOnly(Unpickler)"),
}


def test_nothing_from_outside_is_unpickled() -> None:
    offenders = {
        (path.relative_to(PACKAGE).as_posix(), what.split(" ", 1)[1])
        for path in PACKAGE.rglob("*.py")
        for what in unpickling(ast.parse(path.read_text()))
    }
    assert offenders == UNPICKLERS


@pytest.mark.parametrize(
    "code",
    [
        "class Reader(pickle.Unpickler): ...",
        "class Reader(Unpickler, Base): ...",
        "pickle.Unpickler(file).load()",
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_unpickling_is_seen(code: str) -> None:
    assert len(unpickling(ast.parse(code))) == 1
    assert unpickling(ast.parse("np.load(path); torch.load(path, weights_only=True); class_ = pickle.dumps(1)")) == []


def test_core_imports_without_optional_packages() -> None:
    """Every module of the package imports where torchvision (and whatever needs it) is absent or broken."""
    program = (
        "import importlib, importlib.metadata, sys\n"
        f"absent = {OPTIONAL!r}\n"
        "for name in absent: sys.modules[name] = None\n"
        "from_name = importlib.metadata.Distribution.from_name.__func__\n"
        "def hidden(cls, name):\n"
        "    if name in absent: raise importlib.metadata.PackageNotFoundError(name)\n"
        "    return from_name(cls, name)\n"
        "importlib.metadata.Distribution.from_name = classmethod(hidden)\n"  # torchmetrics asks for versions
        f"for name in {sorted(CODE)!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
