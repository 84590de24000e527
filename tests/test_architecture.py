"""Guards the layout: imports run one way, file names say what is inside, files stay small, nothing unpickles."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "reconx_pl"
# Data flows one way: a room imports itself and rooms of a strictly lower level.
LEVEL = {
    "errors": 0, "console": 0,
    "types": 1, "weights_file": 1, "whole_file": 1, "processor": 1,
    "geometry": 2, "checksums": 2,
    "data": 3, "conditioning": 3, "splatting": 3,
    "diffusion": 4,
    "evaluation": 5,
    "training": 6, "reconstruction": 6,
    "pipeline": 7, "viewer": 7, "doctor": 7,
    "scene_commands": 8, "benchmark_commands": 8, "benchmarking": 8, "machine_commands": 8,
    "view generators": 8,
    "reconstruct_commands": 9, "api": 9,
    "cli": 10,
    "__main__": 11,
}  # fmt: skip
OPTIONAL = {"torchvision", "gsplat", "lpips", "open_clip", "pycolmap", "viser"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def backward_arrows(importer: str, names: list[str]) -> list[str]:
    rooms = {name.split(".")[1] for name in names if name.startswith("reconx_pl.")}
    rooms &= set(LEVEL)
    return sorted(other for other in rooms if other != importer and LEVEL[other] >= LEVEL[importer])


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    assert room(path) in LEVEL, f"{path}: a new room needs its place in the order of imports"
    assert backward_arrows(room(path), imported_names(ast.parse(path.read_text()))) == []


def test_a_backward_arrow_is_seen() -> None:
    assert backward_arrows("geometry", ["reconx_pl.data.shards.schema.encode_clip", "torch"]) == ["data"]
    assert backward_arrows("data", ["reconx_pl.splatting.fit"]) == ["splatting"]


def test_file_names_say_what_is_inside() -> None:
    vague = {"utils", "util", "misc", "common", "helpers", "helper"}
    assert [str(path) for path in modules() if path.stem in vague] == []


def test_files_stay_small() -> None:
    long = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


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
        for path in modules()
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
    names = [".".join(("reconx_pl", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in modules()]
    names = [name.removesuffix(".__init__") for name in names]
    program = (
        "import importlib, importlib.metadata, sys\n"
        f"absent = {OPTIONAL!r}\n"
        "for name in absent: sys.modules[name] = None\n"
        "from_name = importlib.metadata.Distribution.from_name.__func__\n"
        "def hidden(cls, name):\n"
        "    if name in absent: raise importlib.metadata.PackageNotFoundError(name)\n"
        "    return from_name(cls, name)\n"
        "importlib.metadata.Distribution.from_name = classmethod(hidden)\n"  # torchmetrics asks for versions
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
