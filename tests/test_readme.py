"""README's snippets and commands run as printed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forks import ccnn, python
from PIL import Image

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("cat.jpg", "dog.png"):
        Image.effect_noise((90, 60), 50).convert("RGB").save(tmp_path / name)
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "dog.png"):
        shutil.copy(tmp_path / name, tmp_path / "photos")
    return tmp_path


def test_python_snippets_run_in_their_order(folder):
    snippets = blocks("python")
    assert len(snippets) == 3
    for snippet in snippets:
        run = python(snippet, folder=folder)
        assert run.returncode == 0, run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()] == ["cat.jpg", "dog.png"]


def test_commands_run_in_their_order(folder):
    (commands,) = [block for block in blocks("bash") if block.startswith("ccnn")]
    assert len(commands.splitlines()) == 9
    for command in commands.splitlines():
        if command.startswith("ccnn train"):
            command += " --epochs 1"  # the only change: a test need not wait
        run = ccnn(*shlex.split(command)[1:], folder=folder)
        assert run.returncode == 0, run.stderr
        if "--most-doubtful" in command:
            assert re.fullmatch(r"(photos/(cat\.jpg|dog\.png): .*; one of \{.+\}.*\n){2}", run.stdout)
        if command.startswith("ccnn classify cat.jpg"):
            assert re.fullmatch(r"cat\.jpg: (\d \d+\.\d%(, )?){3}(; unlike the known pictures)?\n", run.stdout)
    assert "ccnn_resnet18_cifar" in run.stdout
    assert pq.read_table(folder / "photos.parquet").column("source").to_pylist() == ["photos/cat.jpg", "photos/dog.png"]


def test_every_file_that_the_documents_link_to_is_there():
    root = Path(__file__).resolve().parents[1]
    for document in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
