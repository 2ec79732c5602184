"""Tests and scripts go through public doors. tests/private.txt lists which know a private module, and why."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SCRIPTS = TESTS.parent / "scripts"
LIST = TESTS / "private.txt"
PRIVATE = re.compile(r"ccnn_zoo(?:\.[a-z]\w*)*\._[a-z]\w*")  # up to the first private part
IMPORTED = re.compile(r"from (ccnn_zoo[\w.]*) import ([\w, ]+)")

REACHED = re.compile(r"\b(?:cli|detection|export|hub|runtime|serve|train|web)\._[a-z]\w*")


def private_modules(source: str) -> set[str]:
    """Return the private modules of the package that Python names, in programs and names that are texts as well."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.append(node.value)
            names += [
                f"{home}.{name.split()[0]}" for home, all_ in IMPORTED.findall(node.value) for name in all_.split(",")
            ]
    names += [f"ccnn_zoo.{reached}" for reached in REACHED.findall(source)]
    return {found for name in names for found in PRIVATE.findall(name)}


def listed() -> dict[tuple[str, str], str]:
    """Return the reason by file and module."""
    lines = (line for line in LIST.read_text().splitlines() if line and not line.startswith("#"))
    return {(file, module): reason for file, module, reason in (line.split(None, 2) for line in lines)}


def test_only_listed_files_know_private_modules_and_no_line_is_left_over():
    files = {str(file.relative_to(TESTS)): file for file in TESTS.rglob("*.py") if file != Path(__file__)}
    files |= {str(file.relative_to(TESTS.parent)): file for file in SCRIPTS.rglob("*.py")}
    found = {(name, module) for name, file in files.items() for module in private_modules(file.read_text())}
    assert found - listed().keys() == set(), "go through a public door, or add a line with the reason"
    assert listed().keys() - found == set(), "these lines can go"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from ccnn_zoo.train._batches import view_of", {"ccnn_zoo.train._batches"}),
        ("from ccnn_zoo import hub, _base", {"ccnn_zoo._base"}),
        ("import ccnn_zoo._files.sealed", {"ccnn_zoo._files"}),
        ("def f():\n    from ccnn_zoo.serve import _ray as ray", {"ccnn_zoo.serve._ray"}),
        ("patch('ccnn_zoo.cli._formats.find_spec')", {"ccnn_zoo.cli._formats"}),
        ("run('from ccnn_zoo.hub import search, _limits')", {"ccnn_zoo.hub._limits"}),
        ("from ccnn_zoo import runtime\nruntime._registry.find('cpu')", {"ccnn_zoo.runtime._registry"}),
        ("from ccnn_zoo.train import train\nfrom timm.models._hub import x", set()),
    ],
)
def test_every_way_to_name_a_private_module_is_seen(source, found):
    assert private_modules(source) == found
