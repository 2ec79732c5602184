"""A small network as training would leave it, to publish."""

from __future__ import annotations

import timm
import torch
from torch import nn

import ccnn_zoo  # noqa: F401, registers the network
from ccnn_zoo.checkpoint import TrainingRecord

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


def trained_network(seed: int = 0, labels: tuple[str, ...] | None = LABELS, **arguments: object) -> nn.Module:
    """Return a network whose every tensor differs from its initial value, batch normalisation's statistics too."""
    torch.manual_seed(seed)
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
