"""One folder of all that was ever odd about pictures and folders: every door ends with the right count."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from picture_specimens import specimens
from PIL import Image
from pixel_network import save_pixel_network

from ccnn_zoo.errors import ImageError
from ccnn_zoo.train import load_data

CCNN = Path(sys.executable).with_name("ccnn")
SPECIMENS = specimens()


class Odd(NamedTuple):
    """A folder of odd pictures.

    Args:
        root: with the pictures of two classes in train/ and test/.
        good: paths below train/ of pictures that are read.
        bad: of those that are not.
    """

    root: Path
    good: set[str]
    bad: set[str]


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Odd:
    root = tmp_path_factory.mktemp("odd")
    good, bad = set(), set()

    def put(name: str, content: bytes, fine: bool = True) -> None:
        for part in ("train", "test"):
            path = root / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (good if fine else bad).add(str(root / "train" / name))

    plain = SPECIMENS["grey"].content
    for kind in ("cat", "dog"):
        for name, specimen in SPECIMENS.items():
            file = re.sub(r"\W", "_", name) + specimen.suffix
            put(f"{kind}/{file}", specimen.content, specimen.shown is not None)
        put(f"{kind}/sub folder/=1+2 \x1b[2J\u202e.PNG", plain)
        put(f"{kind}/{os.fsdecode(b'no utf-8 ' + bytes([255]))}.jfif", plain)
    for part in ("train", "test"):
        cat = root / part / "cat"
        for name in (".DS_Store", "._x.png", ".ipynb_checkpoints/x.png", "notes.txt", "Thumbs.db", "no suffix"):
            (cat / name).parent.mkdir(exist_ok=True)
            (cat / name).write_bytes(plain)
        (cat / "empty").mkdir()
        os.symlink("..", cat / "loop")
        os.symlink("sub folder", cat / "a link")
        os.symlink("nowhere", cat / "broken link.png")
        os.mkfifo(cat / "pipe.png")
    # The loop leads from the class to both classes, and the link to pictures once more, but none is taken twice.
    bad |= {str(root / "train" / "cat" / name) for name in ("broken link.png", "pipe.png")}
    return Odd(root, good, bad)


def test_classify_reads_all_that_can_be_read_and_names_the_rest(odd, tmp_path):
    network = save_pixel_network(tmp_path / "pixels.onnx", 4, 4)
    command = [CCNN, "classify", odd.root / "train", "--model", network, "--device", "cpu", "--json"]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    found = {os.path.realpath(result["source"]): result["error"] for result in results}
    assert len(found) == len(results), "no picture is taken twice"
    good, bad = ({os.path.realpath(path) for path in paths} for paths in (odd.good, odd.bad))
    assert {path for path, error in found.items() if error is None} == good
    assert {path for path, error in found.items() if error is not None} == bad
    told = run.stderr.splitlines()
    assert sum(line.startswith(str(odd.root)) for line in told) == len(bad) + 1, run.stderr  # and the empty folder
    assert any("left out: 3 with names that begin with a dot, 3 that are no pictures" in line for line in told)
    assert any("empty is an empty folder" in line for line in told)
    assert "\x1b" not in run.stderr + run.stdout


def test_training_reads_the_same_and_looks_at_all_of_them_first(odd):
    with pytest.warns(UserWarning, match=r"left out .* with names that begin with a dot"):
        data = load_data(f"folder:{odd.root}")
    assert data.labels == ("cat", "dog")
    readable, refused = set(), set()
    for index, path in enumerate(data.train.paths):
        try:
            image, _ = data.train[index]
        except ImageError as error:
            assert os.path.basename(path).encode("ascii", "ignore").decode() in str(error)  # noqa: PT017
            refused.add(os.path.realpath(path))
        else:
            assert (image.mode, type(image)) == ("RGB", Image.Image)
            data.train.look(index)
            readable.add(os.path.realpath(path))
    good, bad = ({os.path.realpath(path) for path in paths} for paths in (odd.good, odd.bad))
    assert (readable, refused) == (good, bad)
