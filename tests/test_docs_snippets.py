"""The commands and programs of docs pages run as printed, in their order, on one training on digits."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from forks import ccnn, python
from PIL import Image
from sklearn.datasets import load_digits

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language == "python" or text.startswith("ccnn")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("snippets")
    digits = load_digits()
    for place in ("photos", "held-out"):
        for index in range(120):
            target = folder / place / (str(digits.target[index]) if place == "held-out" else "")
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[index] * 15.9375).astype("uint8")).save(target / f"{index}.png")
    for name in ("a.png", "b.png"):
        shutil.copy(folder / "photos" / "0.png", folder / name)
    training = ("train", "--recipe", "digits", "--set", "validation=0.2", "--epochs", "1", "--output", "runs/digits")
    for command in (training, ("export", "runs/digits", "--output", "model.onnx")):
        run = ccnn(*command, folder=folder)
        assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.parametrize("page", ["index.md", "uncertainty.md"])
def test_what_the_page_shows_runs(page, trained):
    shown = blocks(page)
    assert shown
    for language, text in shown:
        for program in [text] if language == "python" else text.splitlines():
            if program.startswith("ccnn train"):
                continue  # of which the fixture is the one for all pages, an epoch long
            run = (
                python(program, folder=trained)
                if language == "python"
                else ccnn(*shlex.split(program)[1:], folder=trained)
            )
            assert run.returncode == 0, f"{program}\n{run.stderr}"
