"""docs/errors.md: every error is printed as the page says, by the command above it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from forks import ccnn, python
from PIL import Image

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^## (.*?)\n\n```(bash|python)\n(.*?)^```\n```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    Image.effect_noise((90, 60), 50).convert("RGB").save(folder / "cat.jpg")
    (folder / "torn.jpg").write_bytes((folder / "cat.jpg").read_bytes()[:200])
    (folder / "old.pth").write_bytes(b"a pickle, perhaps")
    (folder / "empty").mkdir()
    made = python(
        "import timm, ccnn_zoo.export\n"
        "network = timm.create_model('ccnn_resnet18_cifar.mnist', pretrained=True)\n"
        "ccnn_zoo.export.to_onnx(network, 'model.onnx')",
        folder=folder,
    )
    assert made.returncode == 0, made.stderr
    return folder


def test_every_section_of_the_page_shows_an_error():
    assert len(SHOWN) == len(re.findall("^## ", PAGE, re.MULTILINE)) > 10


@pytest.mark.parametrize(("language", "program", "text"), [case[1:] for case in SHOWN], ids=[case[0] for case in SHOWN])
def test_what_the_page_shows_is_what_is_printed(language, program, text, folder):
    if language == "bash":
        words = shlex.split(program)
        run = ccnn(*words[words.index("ccnn") + 1 :], folder=folder)
    else:
        run = python(program, folder=folder)
    assert run.returncode == 1
    expected = ".*".join(map(re.escape, text.strip().split("…")))
    printed = run.stderr.strip() if language == "bash" else run.stderr.strip().splitlines()[-1]
    assert re.fullmatch(expected, printed), printed
