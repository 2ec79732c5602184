"""tests/longer.txt names tests that there are, and only once."""

from __future__ import annotations

import ast

import pytest
from conftest import LONGER

LINES = [line for line in LONGER.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("line", LINES)
def test_what_is_called_longer_exists(line):
    file, _, test = line.partition("[")[0].partition("::")
    tree = ast.parse((LONGER.parents[1] / file).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not test or test in names


def test_nothing_is_called_longer_twice():
    wider = {part for line in LINES for part in (line.partition("[")[0], line.partition("::")[0]) if part != line}
    assert not wider & set(LINES)
    assert len(LINES) == len(set(LINES))
