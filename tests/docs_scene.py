"""What the programs of the pages find in the folder that they run in, and on the Hub: the least that they need."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
import yaml
from browser import runtime_folder
from detection_folders import draw, voc_folder
from hub_user import User
from made_once import made_once
from PIL import Image
from serve_network import LABELS, METADATA, save_network
from sklearn.datasets import load_digits
from test_web import put_npm

from ccnn_zoo.train import Recipe

ROOT = Path(__file__).resolve().parents[1]
SMALL_DETECTOR = (
    "{min_size: 96, max_size: 128, anchor_sizes: [16, 32, 64], representation_size: 32, "
    "backbone_kwargs: {layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}}"
)
CCNN = "from ccnn_zoo.cli import main\nmain()"
"""The program of which the arguments are those of ``ccnn``."""

PROGRAMS = "bin"
"""The folder of programs that a page's commands find before all others."""


def scene(page: str, folder: Path, user: User) -> None:
    """Fill the folder that the programs of a page run in, and the Hub."""
    shutil.copytree(made_once("docs", partial(_make, user=user)), folder, dirs_exist_ok=True)
    (folder / "scripts").symlink_to(ROOT / "scripts")
    user.publish(folder / "hub" / "digits", "org/ccnn_resnet18")
    _MORE.get(page, lambda folder, user: None)(folder, user)


def _make(folder: Path, user: User) -> None:
    """Digits as photographs, and a network trained on digits, exported and published to a folder."""
    digits = load_digits()
    for index in range(120):
        picture = Image.fromarray((digits.images[index] * 15.9375).astype("uint8"))
        for place in (folder / "held-out" / str(digits.target[index]), folder / "photos"):
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{index}.png")
    for name in ("cat.jpg", "dog.png", "a.png", "b.png"):
        picture.convert("RGB").resize((64, 48)).save(folder / name)
    shallow = "model_kwargs={layers: [1, 1, 1, 1]}"
    training = ("train", "--recipe", "digits", "--set", "validation=0.2", "--set", shallow, "--branches", 2)
    for command in (
        (*training, "--epochs", 1, "--output", "runs/digits"),
        ("export", "runs/digits", "--output", "model.onnx"),
        ("publish", "runs/digits", "local:hub/digits"),
    ):
        user.run(CCNN, arguments=command, folder=folder)
    for name in ("digits.onnx", "ccnn_resnet18.onnx"):
        shutil.copy(folder / "model.onnx", folder / name)


def _browser(folder: Path, user: User) -> None:
    """A program ``npm`` that gives what npm would fetch."""
    put_npm(folder / PROGRAMS, runtime_folder() / "node_modules" / "onnxruntime-web")


def _detection(folder: Path, user: User) -> None:
    """Shapes with boxes in the place of blood cells, a small recipe, and what torchvision would have fetched."""
    voc_folder(folder / "data" / "bccd")
    changed = Recipe.load("bccd_detection").to_dict() | {"model_kwargs": yaml.safe_load(SMALL_DETECTOR)}
    (folder / "small.yaml").write_text(yaml.safe_dump(changed))
    (folder / "pictures").mkdir()
    for seed, name in enumerate(("pictures/a.png", "pictures/b.jpg", "picture.jpg", "cat.jpg", "dog.png")):
        draw(seed)[0].save(folder / name)
    fetched = user.home / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    fetched.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), fetched)


def _hub(folder: Path, user: User) -> None:
    export = ("export", "runs/digits", "--output", "digits_fp16.onnx", "--precision", "fp16")
    user.run(CCNN, arguments=export, folder=folder)


def _runtime(folder: Path, user: User) -> None:
    """A file without a word of ours, and the names of its classes."""
    network = onnx.load(save_network(folder / "theirs.onnx", metadata=replace(METADATA, input_size=(3, 224, 224))))
    del network.metadata_props[:]
    onnx.save(network, folder / "theirs.onnx")
    (folder / "labels.txt").write_text("\n".join(LABELS))


def _training(folder: Path, user: User) -> None:
    """Noise in the place of CIFAR-10, enough for a batch."""
    noise = np.random.default_rng(0).integers(0, 256, (156, 32, 32, 3), np.uint8)
    for number, pixels in enumerate(noise):
        place = folder / "DATA" / ("train" if number < 148 else "test") / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")


_MORE: dict[str, Callable[[Path, User], None]] = {
    "browser.md": _browser,
    "detection.md": _detection,
    "hub.md": _hub,
    "runtime.md": _runtime,
    "training.md": _training,
}
