"""docs/architecture.md is true: its files exist, and its rooms and their direction are those of the imports."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import architecture  # noqa: E402

PAGE = architecture.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:ccnn_zoo|export|hub|tests|scripts)/[^`]*)`", PAGE))))
def test_every_file_it_names_is_there(path):
    assert (ROOT / path).exists()


def test_the_table_is_what_the_imports_say():
    written = PAGE.split("<!-- rooms:begin -->")[1].split("<!-- rooms:end -->")[0].split("\n")[1:-1]
    assert written == list(architecture.table(architecture.graph())), "run scripts/architecture.py"


def test_rooms_import_in_one_direction():
    assert nx.is_directed_acyclic_graph(architecture.graph())


def test_a_module_without_a_room_is_noticed():
    with pytest.raises(LookupError, match="no room yet"):
        architecture.room_of("ccnn_zoo.somewhere")
