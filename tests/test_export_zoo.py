"""Every class of network in the zoo exports, in both mixings, and the file is what the network is on paper."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import timm
import torch
from separate_networks import randomize
from torch import nn

import ccnn_zoo
from ccnn_zoo import runtime
from ccnn_zoo.export import to_onnx

BRANCHES = 2
LABELS = ["ant", "bee", "cat", "dog", "elk"]


class Kind(NamedTuple):
    """A small network of one class.

    Args:
        name, arguments: what timm makes it of.
        size: height and width of its images.
        convolutions: how many it has.
        batch_norms: how many of its batch norms follow no convolution.
    """

    name: str
    arguments: dict[str, Any]
    size: int
    convolutions: int
    batch_norms: int = 0


ONE_BLOCK_A_STAGE = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}

KINDS = {
    "basic": Kind("ccnn_resnet18", ONE_BLOCK_A_STAGE, 32, convolutions=1 + 4 * 2 + 4),
    "bottleneck": Kind("ccnn_resnet50", ONE_BLOCK_A_STAGE, 32, convolutions=1 + 4 * 3 + 4),
    "padded": Kind("ccnn_resnet20_cifar", {"layers": (1, 1, 1)}, 16, convolutions=1 + 3 * 2),
    # Before each block and after the last, but the first alone reads the stem: the shortcut begins after it.
    "pre-activation": Kind("ccnn_wrn40_4", {"depth": 10, "width": 2}, 16, convolutions=1 + 3 * 2 + 3, batch_norms=3),
    "vgg": Kind("ccnn_vgg16", {"model_cfg": [8, "M", 16], "mlp_ratio": 0.01}, 16, convolutions=2 + 2),
    "nin": Kind("ccnn_nin", {}, 16, convolutions=8),
    # Its hidden layers hold 54 million weights whatever the image.
    "alexnet": Kind("ccnn_alexnet", {}, 224, convolutions=5),
}
SLOW = {"alexnet-grouped", "alexnet-dense", "bottleneck-dense", "padded-dense", "vgg-dense", "nin-dense"}


def build(kind: Kind, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    overlay = {"input_size": (3, kind.size, kind.size), "label_names": LABELS}
    arguments = {"num_classes": len(LABELS), "pretrained_cfg_overlay": overlay, **kind.arguments, **kwargs}
    return randomize(timm.create_model(kind.name, branches=BRANCHES, **arguments)).eval()


def convolutions_of(path: Path) -> Counter[tuple[tuple[int, ...], int]]:
    graph = onnx.load(path).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert not any("calibration" in name for name in shapes)
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    return Counter((shapes[n.input[1]], next(a.i for a in n.attribute if a.name == "group")) for n in nodes)


def convolutions_on_paper(model: nn.Module, mixing: str) -> Counter[tuple[tuple[int, ...], int]]:
    """Eq. 4: K groups that read one branch each; or, with dense mixing, one group that reads all branches."""
    found = Counter()
    first, *others = (m for m in model.modules() if isinstance(m, ccnn_zoo.CalibratedConv2d))
    found[(BRANCHES * first.out_channels, 3, *first.kernel_size), 1] += 1
    for layer in others:
        inputs = layer.in_channels if mixing == "grouped" else BRANCHES * layer.in_channels
        shape = (BRANCHES * layer.out_channels, inputs, *layer.kernel_size)
        found[shape, BRANCHES if mixing == "grouped" else 1] += 1
    return found


@pytest.mark.parametrize(
    ("kind", "mixing"),
    [
        pytest.param(kind, mixing, id=f"{name}-{mixing}", marks=[pytest.mark.slow] * (f"{name}-{mixing}" in SLOW))
        for name, kind in KINDS.items()
        for mixing in ("grouped", "dense")
    ],
)
def test_the_file_is_the_network_with_its_convolutions_and_nothing_else_folded(tmp_path, kind, mixing):
    model = build(kind, mixing=mixing)
    images = torch.randn(3, 3, kind.size, kind.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images).numpy()
    largest = np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 1e-3 * largest, "images that look alike would say nothing"
    path = tmp_path / "x.onnx"
    report = to_onnx(model, path, images=images)
    logits = runtime.load(path, device="cpu").predict(images.numpy())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * largest)
    assert report.agreement == 1
    assert report.nodes["Conv"] == kind.convolutions
    assert report.nodes.get("BatchNormalization", 0) == kind.batch_norms
    assert convolutions_of(path) == convolutions_on_paper(model, mixing)
    path.unlink()  # pytest keeps the folders of three runs
