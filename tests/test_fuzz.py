"""Thousands of mutated networks and pictures: each ends in a result or in an error of the package, in bounded time.

They run in a sub-process. If it dies, the case that killed it is named, and the rest goes on in the next process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzz_mutations import HOSTILE

CHILD = Path(__file__).with_name("fuzz_child.py")
SEED = 0
MOST_DEATHS = 5  # after which the rest is not tried


def run(kind: str, folder: Path, cases: int) -> tuple[list[tuple[int, str, str, str]], list[str]]:
    """Return the outcomes (number, what, kind, reason), and a line for each case that ended its process."""
    first, deaths = 0, []
    (folder / "current").write_text("0 the start\n")
    while first < cases and len(deaths) < MOST_DEATHS:
        command = [sys.executable, str(CHILD), kind, str(folder), str(SEED), str(first), str(cases)]
        child = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if child.returncode == 0:
            break
        number, what = (folder / "current").read_text().split(maxsplit=1)
        deaths.append(f"case {number}, {what.strip()}: exit code {child.returncode}, {child.stderr[-2000:]}")
        first = int(number) + 1
    lines = (folder / "outcomes").read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines], deaths


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        ("models", 2000),
        ("pictures", 2000),
        pytest.param("models", 40_000, marks=pytest.mark.slow),
        pytest.param("openvino", 2000, marks=pytest.mark.slow),
        pytest.param("pictures", 20_000, marks=pytest.mark.slow),
    ],
)
def test_mutated_files_end_in_a_result_or_an_error_of_the_package(kind, cases, tmp_path):
    if kind == "openvino":
        pytest.importorskip("openvino")
    outcomes, deaths = run(kind, tmp_path, cases)
    assert not deaths, "\n".join(deaths)
    wrong = [f"case {number}, {what}: {reason}" for number, what, result, reason in outcomes if result == "wrong"]
    assert not wrong, f"{len(wrong)}, e.g.\n" + "\n".join(wrong[:3])
    assert [number for number, *_ in outcomes] == list(range(cases))
    counts = Counter(result for _, _, result, _ in outcomes)
    # Mutations that nobody notices, or that nothing survives, would try nothing.
    assert min(counts["accepted"], counts["refused"]) > cases // 30, counts
    if kind != "pictures":
        hostile = {what.split(" in ")[0] for _, what, _, _ in outcomes}
        assert set(HOSTILE) <= hostile
