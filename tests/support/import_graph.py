"""What imports what in a package, read from its source: arrows, and circles among modules, sub-rooms and rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]  # a module, and the modules of the package that it imports


def sources(package: Path) -> dict[str, str]:
    """Dotted names of all modules of a package and their source; a folder's ``__init__`` has the folder's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def import_graph(code: Mapping[str, str]) -> Graph:
    """Every import at run time, those within functions too; under ``if TYPE_CHECKING:`` are types alone.

    Args:
        code: source by dotted name, all of one package.

    Raises:
        ValueError: a relative import, whose arrow a reader could not follow by searching for a name.
    """
    package = next(iter(code)).split(".")[0]
    graph: Graph = {}
    for module, text in code.items():
        names = [name for node in run_time_nodes(ast.parse(text)) for name in imported_names(node, module)]
        inside = (name for name in names if name.split(".")[0] == package)
        graph[module] = {name if name in code else name.rpartition(".")[0] for name in inside} - {module}
    return graph


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree but those under ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            child = ast.Module(child.orelse, [])
        yield child
        yield from run_time_nodes(child)


def imported_names(node: ast.AST, module: str) -> list[str]:
    """Dotted names that an import statement asks for, without the package ``import a.b`` itself; [] for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            raise ValueError(f"{module}, line {node.lineno}: imports are absolute")
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def arrows(graph: Graph) -> list[tuple[str, str]]:
    """All pairs of importing and imported module, in order."""
    return [(module, other) for module in sorted(graph) for other in sorted(graph[module])]


def circles(graph: Graph) -> dict[str, list[str]]:
    """Modules, sub-rooms and rooms that import each other, directly or by way of others: {} where there are none.

    A room is a folder of the package, a sub-room a folder of a room; a file beside them stands for itself. A folder
    imports what any of its modules imports: two folders can be in a circle while no two modules are.

    Returns:
        Names in the circle, with commas, to the imports that make it.
    """
    found = {}
    deepest = max(module.count(".") for module in graph)
    for depth in range(1, deepest + 1):
        for circle in _strongly_connected(_folded(graph, depth)):
            among = [(a, b) for a, b in arrows(graph) if {_unit(a, depth), _unit(b, depth)} <= circle]
            between = [f"{a} -> {b}" for a, b in among if _unit(a, depth) != _unit(b, depth)]
            found[", ".join(sorted(circle))] = between
    return found


def _unit(module: str, depth: int) -> str:
    """The folder of a module ``depth`` below the package, or the module where it is not that deep."""
    return ".".join(module.split(".")[: depth + 1])


def _folded(graph: Graph, depth: int) -> Graph:
    folded: Graph = {}
    for module, others in graph.items():
        unit = _unit(module, depth)
        folded.setdefault(unit, set()).update({_unit(other, depth) for other in others} - {unit})
    return folded


def _strongly_connected(graph: Graph) -> list[set[str]]:
    """Sets of two or more that reach each other."""
    reached = {start: _reached(graph, start) for start in graph}
    circles = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
    return [set(circle) for circle in sorted(circles, key=sorted)]


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    todo = set(graph[start])
    while todo:
        node = todo.pop()
        seen.add(node)
        todo |= graph.get(node, set()) - seen
    return seen
