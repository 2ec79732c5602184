"""Write the picture and the table of docs/architecture.md from the imports of the package.

    python scripts/architecture.py

Ends with an error where the rooms import each other in a circle, or where a module belongs to no room.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import networkx as nx
from documents import replacing, write_between

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = PAGE.with_suffix(".png")

FOLDERS = {"ccnn_zoo": ROOT / "ccnn_zoo", "ccnn_zoo.export": ROOT / "export", "ccnn_zoo.hub": ROOT / "hub"}
DOOR = {"__init__", "__main__"}
# Modules at the package's root; every folder is a room of its own.
CORE = ("layers", "convert", "branchwise", "_conversion")
ROOMS = {
    "core": CORE,
    "networks in files": ("checkpoint", "_arguments", "_rebuild"),
    "metadata": ("metadata", "_tasks"),
    "base": ("errors", "_base", "_files", "_printable"),
}
SPLIT = {"_arguments": "arguments", "_deployed": "shipped"}
"""Modules that stand above and below other rooms than the rest of their own: rooms of one file in the picture."""
IS = {
    "analysis": "the paper's theory on a real run",
    "arguments": "what a file may say of a network: known names, types, ranges",
    "base": "errors, checks of values and of names that people type, files that are never half-written",
    "cli": "the command `ccnn`",
    "core": "the calibrated convolution, what becomes what, and the check that branches stay apart",
    "demo": "`make demo`",
    "detection": "Faster R-CNN on calibrated backbones",
    "export": "from a network to checked ONNX files",
    "hub": "publish, find, download, verify",
    "metadata": "labels, preprocessing and numbers of confidence of an ONNX file; how tasks are told apart",
    "models": "the zoo, in timm's registry",
    "networks in files": "checkpoints, and networks built again from what they say",
    "optim": "CSGD",
    "pictures": "reading and finding pictures",
    "runtime": "classify and detect with an ONNX file; neither torch nor timm, unless asked for",
    "serve": "HTTP, Triton, Ray",
    "shipped": "networks that come with the package",
    "train": "recipes, data, the loop, exact resuming",
    "uncertainty": "what a classifier does not know: fitting and scores",
    "web": "pages in the browser",
}


def main() -> None:
    rooms = graph()
    if not nx.is_directed_acyclic_graph(rooms):
        raise SystemExit(f"rooms import each other in a circle: {nx.find_cycle(rooms)}")
    draw(rooms)
    write_between(PAGE, "rooms", table(rooms))


def graph() -> nx.DiGraph:
    """Return the rooms, with their lines of code, and which imports which; imports for type checkers only count too."""
    modules = dict(_modules())
    found = nx.DiGraph()
    lines: Counter[str] = Counter()
    for name, file in modules.items():
        if (room := room_of(name)) is None:
            continue
        lines[room] += len(file.read_text(encoding="utf-8").splitlines())
        for imported in _imports(name, file, modules):
            if (other := room_of(imported)) not in (None, room):
                found.add_edge(room, other)
    nx.set_node_attributes(found, lines, "lines")
    return found


def room_of(module: str) -> str | None:
    """Return the room of ``ccnn_zoo.x.y``; None of the front door."""
    first = module.split(".")[1] if "." in module else "__init__"
    if first in DOOR:
        return None
    if first in SPLIT:
        return SPLIT[first]
    named = next((room for room, names in ROOMS.items() if first in names), None)
    if named is None and not ((FOLDERS["ccnn_zoo"] / first).is_dir() or f"ccnn_zoo.{first}" in FOLDERS):
        raise LookupError(f"{module} has no room yet: name one in ROOMS")
    return named or first


def _modules() -> Iterator[tuple[str, Path]]:
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), file


def _imports(module: str, file: Path, modules: dict[str, Path]) -> Iterator[str]:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            here = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*here, *([node.module] if node.module else [])])
            for alias in node.names:
                yield from [m for m in (f"{source}.{alias.name}", source) if m in modules][:1]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)


def draw(rooms: nx.DiGraph) -> None:
    """Draw the rooms, each above all that it imports. Arrows that follow from others are left out."""
    rows = list(nx.topological_generations(rooms.reverse()))
    place = {
        room: ((i + 0.5) / len(row), level) for level, row in enumerate(rows) for i, room in enumerate(sorted(row))
    }
    figure, axes = plt.subplots(figsize=(11, 1.05 * len(rows)))
    for room, other in nx.transitive_reduction(rooms).edges:
        axes.annotate(
            "",
            xy=(place[other][0], place[other][1] + 0.22),
            xytext=(place[room][0], place[room][1] - 0.22),
            arrowprops={"arrowstyle": "-|>", "color": "#9aa7b5", "lw": 1.2, "shrinkA": 2, "shrinkB": 2},
        )
    for room, (x, y) in place.items():
        label = f"{room}\n{rooms.nodes[room]['lines']:,} lines"
        box = {"boxstyle": "round,pad=0.45", "fc": "#fdf3e1" if room == "core" else "#eef3f8", "ec": "#4b6584"}
        axes.text(x, y, label, ha="center", va="center", fontsize=9, bbox=box)
    axes.set(xlim=(0, 1), ylim=(-0.5, len(rows) - 0.5))
    axes.axis("off")
    figure.tight_layout()
    with replacing(PICTURE) as path:
        figure.savefig(path, format="png", dpi=110)


def table(rooms: nx.DiGraph) -> Iterator[str]:
    """Yield the rooms from the top to the bottom."""
    yield "| room | what it is | imports |"
    yield "|---|---|---|"
    for row in reversed(list(nx.topological_generations(rooms.reverse()))):
        for room in sorted(row):
            yield f"| {room} | {IS[room]} | {', '.join(sorted(rooms.successors(room)))} |"


if __name__ == "__main__":
    main()
