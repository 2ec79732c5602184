"""A small network as training would leave it, its checkpoint and its repository: made once a session, to publish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from made_once import made_once
from PIL import Image
from torch import nn

import ccnn_zoo  # noqa: F401, registers the network
from ccnn_zoo import hub
from ccnn_zoo.checkpoint import TrainingRecord, save_checkpoint

LABELS = ("zero", "one", "two", "three", "four")
SIZE = (1, 12, 10)
RECORD = TrainingRecord(
    data="digits | five of them",
    seed=7,
    epochs=3,
    recipe={"lr": 0.1, "noise_std": 1e-4},
    metrics={"test_error_percent": 2.4375, "train_loss": 0.125},
    versions={"torch": torch.__version__},
)
FILES = {
    "README.md",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "onnx/model.onnx",
    "pictures/calibration.png",
    "pictures/errors.png",
}
FETCHED = {name for name in FILES if not name.startswith("pictures/")}


def trained_network(seed: int = 0, labels: tuple[str, ...] | None = LABELS, **arguments: object) -> nn.Module:
    """Return a network whose every tensor differs from its initial value, batch normalisation's statistics too.

    It has one block a stage, since most of what publishing takes is the export, block by block.
    """
    torch.manual_seed(seed)
    arguments = {"layers": (1, 1, 1, 1), **arguments}
    config = {"input_size": SIZE, "mean": (0.25,), "std": (0.5,), "interpolation": "bilinear", "crop_pct": 0.9}
    if labels:
        config["label_names"] = list(labels)
    model = timm.create_model(
        "ccnn_resnet18_cifar", in_chans=1, num_classes=len(LABELS), pretrained_cfg_overlay=config, **arguments
    )
    model.train()
    for _ in range(3):
        model(torch.randn(8, *SIZE))
    return model.eval()


def training_folder() -> Path:
    """Return what ``ccnn train`` leaves of a network of two branches: its checkpoint and a picture of its curves."""
    return made_once("run", _train)


def published_folder() -> Path:
    """Return the local repository of that checkpoint. It is shared: copy it before you change anything."""
    return made_once("published", _publish) / "digits"


def _publish(folder: Path) -> None:
    run = training_folder()
    hub.publish(run / "last.safetensors", f"local:{folder}/digits", curves=run / "curves.png")


def _train(folder: Path) -> None:
    save_checkpoint(folder / "last.safetensors", trained_network(branches=2), RECORD)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(folder / "curves.png")


def content_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
