"""What `make` says before it fills a disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def make(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", *arguments], cwd=tmp_path, capture_output=True, text=True)

    return run


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(make, tmp_path):
    done = make("demo", f"PYTHON={sys.executable}", "NEEDS_GB=1000000000")
    assert done.returncode != 0
    assert "are free here, and 1000000000 are needed" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_an_old_python_is_told_before_anything_is_made(make, tmp_path):
    (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "old").chmod(0o755)
    done = make("demo", "PYTHON=./old")
    assert done.returncode != 0
    assert "make PYTHON=python3.12 demo" in done.stdout
    assert not (tmp_path / ".venv").exists()
