"""Classification looks at its pictures before the first epoch, as detection does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import on_terminal

from ccnn_zoo.errors import ConfigurationError, ImageError
from ccnn_zoo.train import Recipe, train

CCNN = Path(sys.executable).with_name("ccnn")


def image_folder(root: Path, count: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")
    return root


def recipe(root: Path, **changes: object) -> Recipe:
    usual = {
        "model": "ccnn_resnet18_cifar",
        "model_kwargs": {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
        "branches": 2,
        "epochs": 1,
    }
    return Recipe(**{**usual, "data": f"folder:{root}", "image_size": 8, "batch_size": 4, **changes})


def spoil(root: Path) -> dict[str, str]:
    """Spoil pictures in three ways; return what is told of each."""
    (root / "train/cat/0.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(root / "train/dog/1.tif")
    (root / "train/dog/gone.png").symlink_to("nowhere")
    Image.fromarray(np.full((8, 8), 99999, np.int32)).save(root / "test/dog/2.tif")
    return {
        "train/cat/0.png": "is not an image of a known format",
        "train/dog/1.tif": "has floating-point pixels",
        "train/dog/gone.png": "no such file",
        "test/dog/2.tif": "beyond 16 bits",
    }


def test_all_unreadable_pictures_are_named_before_anything_is_trained(tmp_path):
    root = image_folder(tmp_path / "data")
    spoiled = spoil(root)
    told = r"^4 pictures .*skip_unreadable=true \(ccnn train --skip-unreadable\)"
    with pytest.raises(ImageError, match=told) as caught:
        train(recipe(root), tmp_path / "run", progress=False, pictures=False)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(spoiled)
    for line, (name, told) in zip(lines, spoiled.items(), strict=True):
        assert str(root / name) in line
        assert told in line
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_unreadable_pictures_are_left_out_where_that_is_asked(tmp_path):
    root = image_folder(tmp_path / "data")
    without = recipe(root)
    expected = train(without, tmp_path / "whole", progress=False, pictures=False)
    for name in ("a.png", "z.png"):
        (root / "train" / "cat" / name).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"2 pictures or folders of data left out:\n.*a\.png is not an image"):
        found = train(recipe(root, skip_unreadable=True), tmp_path / "run", progress=False, pictures=False)
    for ours, theirs in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path):
    root = image_folder(tmp_path / "data", count=1)
    (root / "train/cat/0.png").write_bytes(b"no picture")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ConfigurationError, match="no training picture of cat in data can be read"),
    ):
        train(recipe(root, skip_unreadable=True), tmp_path / "run", progress=False, pictures=False)


def test_the_switch_changes_nothing_of_runs_that_did_not_know_it(tmp_path):
    assert "skip_unreadable" not in recipe(tmp_path).decisive()
    assert recipe(tmp_path, skip_unreadable=True).decisive()["skip_unreadable"] is True


def test_the_command_skips_and_a_terminal_sees_a_bar(tmp_path):
    root = image_folder(tmp_path / "data")
    (root / "train/cat/0.png").write_bytes(b"no picture")
    recipe(root).to_yaml(tmp_path / "recipe.yaml")
    command = [CCNN, "train", "--recipe", tmp_path / "recipe.yaml", "-o", tmp_path / "run"]
    refused = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: 1 pictures or folders of data cannot be used")
    status, seen, out = on_terminal([*command, "--skip-unreadable"], "stderr", stdout=subprocess.PIPE)
    assert status == 0
    assert b"pictures looked at" in seen
    assert b"24/24" in seen
    assert b"saved to" in out
