"""Faster R-CNN of torchvision on a calibrated backbone.

Source: the paper's section "Experiments on object detection", Table 4; Ren et al., "Faster R-CNN", NeurIPS 2015.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from ccnn_zoo._arguments import ARGUMENTS, DETECTOR, checked
from ccnn_zoo._base.checks import check_integer
from ccnn_zoo._rebuild import refused_by
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import FEATURE_MERGES, CalibratedConv2d, check_branches, check_merge

from ._backbone import DetectorBackbone
from ._weights import load_classifier, open_classifier, preprocessing_of

ANCHOR_SIZES = (64, 128, 256, 512)
"""Sides in pixels of the paper's square anchors."""

_RATIOS = (0.5, 1.0, 2.0)
_ROI_SIDE = 7
_OURS = {"self", "backbone", "rpn_anchor_generator", "rpn_head", "box_roi_pool", "box_head", "box_predictor", "kwargs"}
_ANCHOR_PER_STRIDE = 8  # of a pyramid: 32 pixels at stride 4, as torchvision has it


def create_detector(
    backbone: str,
    *,
    num_classes: int,
    labels: Sequence[str] | None = None,
    branches: int = 2,
    merge: str = "mean",
    mixing: str = "grouped",
    fpn: bool = False,
    stride: int = 16,
    min_size: int = 600,
    max_size: int = 1000,
    anchor_sizes: Sequence[int] | None = None,
    representation_size: int = 1024,
    backbone_weights: str | os.PathLike[str] | nn.Module | None = None,
    diversity: float = 0.1,
    frozen_norm: bool | None = None,
    folded: bool = False,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    backbone_kwargs: Mapping[str, Any] | None = None,
    **faster_rcnn: Any,
) -> FasterRCNN:
    """Return torchvision's Faster R-CNN on a network of the zoo, whose branches meet before the proposals.

    It is called as torchvision's are: with a list of images in [0, 1], (3, H, W) of any size, and in train mode with
    ``{"boxes": (n, 4), "labels": (n,)}`` for each; boxes are (x1, y1, x2, y2) in pixels of the given image, labels
    count from 1, 0 is the background. :func:`ccnn_zoo.fold` gives the plain network with the same outputs.

    Args:
        backbone: timm name of a network, such as ``"ccnn_resnet18"`` or ``"ccnn_alexnet"``, or of a plain one, which is
            calibrated: ``"resnet50"``.
        num_classes: kinds of objects, without the background.
        labels: their names.
        branches: number K of branches; 1 is the plain network.
        merge: how they meet: ``"mean"``, ``"max"`` or ``"concat"``.
        mixing: which features a branch reads: its own (``"grouped"``) or those of all (``"dense"``).
        fpn: a feature pyramid, with anchors of one size at each level, instead of the paper's single level.
        stride: of the single level, in pixels; the deepest level that is no coarser is read.
        min_size: short side in pixels to which images are brought.
        max_size: longest side in pixels of the same.
        anchor_sizes: sides in pixels of square anchors; at each, 1:2 and 2:1 of the same area too. By default 64, 128,
            256 and 512 as in the paper; with ``fpn`` one per level, 8 times its stride.
        representation_size: width of the two hidden layers that read a region.
        backbone_weights: a classifier whose weights the backbone starts from: a checkpoint of ours, the timm name of
            a network with trained weights, ``torchvision:`` and a name of torchvision, or a module. A plain one is
            calibrated.
        diversity: how far R starts from uniform where a plain classifier is calibrated.
        frozen_norm: keep batch normalisation as it is; by default where ``backbone_weights`` are given, since a
            few images a step give poor statistics.
        folded: build the plain form with grouped convolutions, which loads the weights of a folded detector.
        image_mean, image_std: per channel, of values in [0, 1]; by default what ``backbone_weights`` expect, or
            ImageNet's.
        backbone_kwargs: further arguments of the network, as ``timm.create_model`` takes them.
        faster_rcnn: further arguments of torchvision's ``FasterRCNN``, such as ``box_score_thresh``.

    Raises:
        ConfigurationError: a value is out of range, or weights and network do not fit.
        RepositoryError: there is no such checkpoint.
        IntegrityError: the checkpoint is damaged.
    """
    check_branches(branches)
    check_merge(merge, FEATURE_MERGES)
    _check_classes(num_classes, labels)
    _check_further(faster_rcnn)
    if folded and backbone_weights is not None:
        raise ConfigurationError("folded=True and backbone_weights exclude each other; fold the detector afterwards")
    classifier = None if backbone_weights is None else open_classifier(backbone_weights)
    expected = {} if classifier is None else preprocessing_of(classifier)
    config = {
        "backbone": backbone,
        "num_classes": num_classes,
        "labels": None if labels is None else list(labels),
        "branches": branches,
        "merge": merge,
        "mixing": mixing,
        "fpn": fpn,
        "stride": stride,
        "min_size": min_size,
        "max_size": max_size,
        "anchor_sizes": None if anchor_sizes is None else list(anchor_sizes),
        "representation_size": representation_size,
        "frozen_norm": classifier is not None if frozen_norm is None else frozen_norm,
        "image_mean": _listed(image_mean or expected.get("image_mean")),
        "image_std": _listed(image_std or expected.get("image_std")),
        "backbone_kwargs": dict(backbone_kwargs or {}),
        **faster_rcnn,
    }
    detector = _assemble(config, folded)
    if classifier is not None:
        load_classifier(detector.backbone, classifier, mixing, diversity)
    return detector


def detector_config(detector: FasterRCNN) -> dict[str, Any]:
    """Return the arguments of :func:`create_detector` that build this network anew, as JSON holds them.

    Raises:
        ConfigurationError: it was made otherwise, or with arguments that no file may set.
    """
    config = getattr(detector, "config", None)
    if config is None:
        raise ConfigurationError(f"{type(detector).__name__} was not made by create_detector; make it so")
    folded = not any(isinstance(module, CalibratedConv2d) for module in detector.modules())
    checked_config(config)  # or nobody could load it
    return {**config, "folded": folded}


def checked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of :func:`create_detector` that nobody vouches for: those that a file may set.

    Raises:
        ConfigurationError: one is none of these, or out of range.
    """
    own = {name: value for name, value in config.items() if name != "backbone_kwargs"}
    backbone = checked(config.get("backbone_kwargs") or {}, ARGUMENTS, "backbone_kwargs")
    arguments = checked(own, DETECTOR, "the arguments of a detector")
    missing = [name for name in ("backbone", "num_classes") if name not in arguments]
    if missing:
        raise ConfigurationError(f"the arguments of a detector lack {' and '.join(missing)}")
    return {**arguments, "backbone_kwargs": backbone}


def _assemble(config: dict[str, Any], folded: bool) -> FasterRCNN:
    options = dict(config)
    network = {name: options.pop(name) for name in ("branches", "mixing")}
    features = DetectorBackbone(
        options.pop("backbone"),
        {**options.pop("backbone_kwargs"), **network, "folded": folded},
        **{name: options.pop(name) for name in ("merge", "stride", "fpn", "frozen_norm")},
    )
    levels = [str(level) for level in range(len(features.strides) - (features.pyramid is not None))]
    width, classes = options.pop("representation_size"), options.pop("num_classes") + 1
    del options["labels"]
    with refused_by("FasterRCNN", options):
        detector = FasterRCNN(
            features,
            rpn_anchor_generator=_anchors(features, options.pop("anchor_sizes")),
            box_roi_pool=MultiScaleRoIAlign(levels, _ROI_SIDE, sampling_ratio=2),
            box_head=TwoMLPHead(features.out_channels * _ROI_SIDE**2, width),
            box_predictor=FastRCNNPredictor(width, classes),
            **options,
        )
    detector.config = config
    return detector


def _anchors(features: DetectorBackbone, sizes: Sequence[int] | None) -> AnchorGenerator:
    if features.pyramid is None:
        per_level = (tuple(sizes or ANCHOR_SIZES),)
    else:
        sizes = sizes or [_ANCHOR_PER_STRIDE * stride for stride in features.strides]
        if len(sizes) != len(features.strides):
            raise ConfigurationError(
                f"anchor_sizes needs one side for each of the {len(features.strides)} levels, got {list(sizes)}"
            )
        per_level = tuple((size,) for size in sizes)
    return AnchorGenerator(per_level, (_RATIOS,) * len(per_level))


def _check_classes(num_classes: int, labels: Sequence[str] | None) -> None:
    check_integer("num_classes", num_classes)
    if labels is not None and len(labels) != num_classes:
        raise ConfigurationError(f"labels must name num_classes={num_classes} kinds of objects, got {len(labels)}")


def _check_further(arguments: Mapping[str, Any]) -> None:
    # torchvision hands what it does not know to its transform, which ignores it.
    known = set(signature(FasterRCNN.__init__).parameters) - _OURS
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ConfigurationError(
            f"create_detector knows no {', '.join(unknown)}; besides its own it takes {', '.join(sorted(known))}"
        )


def _listed(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)
