"""Figures that a page takes from other pages are theirs: whoever renews those renews it too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import why_figures  # noqa: E402


@pytest.mark.parametrize("page", why_figures.PAGES)
def test_a_page_says_what_the_results_say_today(page):
    text = (why_figures.DOCS / page).read_text(encoding="utf-8")
    assert why_figures.current(page) == text, "run scripts/why_figures.py"


def test_the_short_table_of_uncertainty_is_of_the_long_one():
    text = (ROOT / "docs" / "uncertainty.md").read_text(encoding="utf-8")
    short = text.partition("<!-- figures:begin -->")[2].partition("<!-- figures:end -->")[0]
    long = (ROOT / "docs" / "uncertainty_figures.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in short.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert [row for row in rows if row not in long] == []
