"""Small detectors with seeded weights that find many objects of all kinds, sure of some and unsure of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from made_once import made_once
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from typer.testing import CliRunner

from ccnn_zoo.checkpoint import TrainingRecord
from ccnn_zoo.cli import app
from ccnn_zoo.detection import create_detector, save_detector

LABELS = ["red", "green", "blue"]
RECORD = TrainingRecord(data="seeded", seed=0, epochs=0, metrics={"test_map_percent": 12.5})
_SMALL = {"num_classes": 3, "labels": LABELS, "min_size": 96, "max_size": 160, "representation_size": 32}
_THIN = {"backbone_kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}


@torch.no_grad()
def seeded_detector(backbone: str = "ccnn_resnet18", *, bright: bool = True, **changes: object) -> FasterRCNN:
    """Return a detector in eval mode whose scores and boxes spread as a trained one's do, without the training.

    Args:
        backbone: name of a network.
        bright: let them spread on bright pictures too; else all scores on photographs are 1 but for the last bits.
        changes: arguments of ``create_detector``.
    """
    thin = _THIN if backbone == "ccnn_resnet18" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = create_detector(backbone, **{**_SMALL, **thin, "branches": 2, **changes})
        other = rectangles(150, 100, 2)
        pictures = [rectangles(120, 160, 1), 1 - other if bright else other]
        box = {"boxes": torch.tensor([[10.0, 10, 60, 60]]), "labels": torch.tensor([1])}
        detector.train()(pictures, [box, box])  # batch normalisation gets statistics
    detector.eval()
    heads, predictor = detector.rpn.head, detector.roi_heads.box_predictor
    for layer, deviation in (
        *((heads.cls_logits, 2.0), (heads.bbox_pred, 0.3)),
        *((predictor.cls_score, 2.0), (predictor.bbox_pred, 1.0)),
    ):
        _spread(layer, deviation, lambda: detector(pictures))
    return detector


def published_detector() -> tuple[Path, Path]:
    """Return a training folder of a detector, as ``ccnn train`` leaves it, and what publishing makes of it.

    Made once a session: copy it before you change anything.
    """
    place = made_once("detector", _publish)
    return place / "run", place / "cells"


def _publish(place: Path) -> None:
    detector = seeded_detector(backbone="ccnn_alexnet", anchor_sizes=(16, 32, 64))
    (place / "run").mkdir()
    save_detector(place / "run" / "last.safetensors", detector, RECORD)
    result = CliRunner().invoke(app, ["publish", f"{place}/run", f"local:{place}/cells"], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def save_picture(path: Path, height: int, width: int) -> None:
    """Write a picture of rectangles."""
    pixels = rectangles(height, width, seed=4).permute(1, 2, 0).numpy()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)


def rectangles(height: int, width: int, seed: int) -> Tensor:
    """Return a picture (3, H, W) in [0, 1]: coloured rectangles on noise."""
    generator = torch.Generator().manual_seed(seed)
    picture = 0.3 * torch.rand(3, height, width, generator=generator)
    side = max(1, min(height, width) // 4)
    for _ in range(6):
        top = int(torch.randint(0, height - side + 1, (), generator=generator))
        left = int(torch.randint(0, width - side + 1, (), generator=generator))
        picture[:, top : top + side, left : left + side] = torch.rand(3, 1, 1, generator=generator)
    return picture


def _spread(layer: nn.Module, deviation: float, run: Callable[[], object]) -> None:
    """Give every output of a layer the mean 0 and this standard deviation on some pictures."""
    outputs: list[Tensor] = []
    with layer.register_forward_hook(lambda _, inputs, output: outputs.append(output.movedim(1, -1).flatten(0, -2))):
        run()
    values = torch.cat(outputs)
    factor = deviation / values.std(0).clamp(min=1e-6)
    layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_((layer.bias - values.mean(0)) * factor)
