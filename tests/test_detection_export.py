"""Contract of ccnn_zoo.export.detector_to_onnx: the file finds what torch finds, or there is no file."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from detector_network import LABELS, rectangles, seeded_detector
from onnx import ModelProto, numpy_helper
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.transforms.functional import pil_to_tensor

from ccnn_zoo import export
from ccnn_zoo.errors import ConfigurationError, ExportError, MetadataError
from ccnn_zoo.export import _detection, _detection_compare, detector_to_onnx
from ccnn_zoo.export._detection_compare import compare_detections
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.metadata import DetectorMetadata

CELLS = "bccd/VOCdevkit/VOC2007/JPEGImages/*.jpg"
SIZES = [(120, 160), (375, 500), (64, 64), (211, 333), (60, 180), (20, 15)]
VARIANTS = {
    # Its levels are no whole share of the picture, so that strides differ from size to size.
    "odd strides": {"backbone": "ccnn_alexnet", "merge": "concat", "anchor_sizes": (16, 32, 64)},
    "single level": {"anchor_sizes": (16, 32, 64)},
    "pyramid": {"fpn": True, "merge": "max"},
}
SLOW = ("single level", "pyramid")  # torch.onnx takes a minute for each


@dataclass(frozen=True)
class Exported:
    detector: FasterRCNN
    path: Path
    report: export.DetectionReport


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in VARIANTS],
)
def exported(request, tmp_path_factory) -> Exported:
    return _exported(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Exported:
    return _exported("odd strides", tmp_path_factory)


_DONE: dict[str, Exported] = {}


def _exported(variant: str, factory: pytest.TempPathFactory) -> Exported:
    if variant not in _DONE:
        detector = seeded_detector(**VARIANTS[variant])
        path = factory.mktemp("exported") / "detector.onnx"
        report = detector_to_onnx(detector.train(), path, images=[rectangles(90, 200, 3)])
        assert detector.training, "the caller's network is left as it was"
        _DONE[variant] = Exported(detector.eval(), path, report)
    return _DONE[variant]


def in_onnxruntime(path: Path, picture: Tensor) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(("boxes", "labels", "scores"), session.run(None, {"image": picture[None].numpy()}), strict=True))


@torch.no_grad()
def in_torch(detector: FasterRCNN, picture: Tensor) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in detector([picture])[0].items()}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Compare detections whatever their order: equal scores may come in any."""
    assert len(ours["labels"]) == len(theirs["labels"])
    distance = np.abs(ours["boxes"][:, None] - theirs["boxes"]).max(-1)
    distance[ours["labels"][:, None] != theirs["labels"]] = 1e6
    one, other = linear_sum_assignment(distance)
    np.testing.assert_array_equal(ours["labels"][one], theirs["labels"][other])
    np.testing.assert_allclose(ours["boxes"][one], theirs["boxes"][other], rtol=0, atol=0.5)
    np.testing.assert_allclose(ours["scores"][one], theirs["scores"][other], rtol=0, atol=1e-3)


def test_the_file_finds_what_torch_finds_at_every_size(exported):
    kinds = set()
    for number, size in enumerate(SIZES):
        theirs = in_torch(exported.detector, rectangles(*size, seed=10 + number))
        assert_same(in_onnxruntime(exported.path, rectangles(*size, seed=10 + number)), theirs)
        assert len(theirs["labels"]) > 20
        kinds |= set(theirs["labels"].tolist())
    assert kinds == {1, 2, 3}


def test_the_file_finds_what_torch_finds_on_real_pictures(exported, real_data):
    found = 0
    for path in sorted(real_data.glob(CELLS))[:3]:
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
        picture = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        theirs = in_torch(exported.detector, picture)
        assert_same(in_onnxruntime(exported.path, picture), theirs)
        found += len(theirs["labels"])
    assert found > 20


@pytest.mark.slow
def test_the_last_bits_of_scores_may_decide_which_box_stays(tmp_path, monkeypatch, real_data):
    sure = seeded_detector(**VARIANTS["pyramid"], bright=False)
    with torch.no_grad():  # scores of 1 less rounding
        for parameter in sure.roi_heads.box_predictor.cls_score.parameters():
            parameter.mul_(8)
    path = tmp_path / "sure.onnx"
    detector_to_onnx(sure, path, images=[rectangles(90, 200, 3)])
    pictures = [pil_to_tensor(Image.open(p).convert("RGB")) / 255 for p in sorted(real_data.glob(CELLS))[:3]]
    differences = compare_detections(sure, path, pictures)
    assert sum(each.ties for each in differences) < 0.1 * sum(each.detections for each in differences)

    def last_bits(_, __, outputs):
        """What another processor's rounding may do."""
        logits, boxes = outputs
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        return (logits.softmax(-1) + 1e-7 * noise).clamp(min=1e-12).log(), boxes

    sure.roi_heads.box_predictor.register_forward_hook(last_bits)
    assert sum(each.ties for each in compare_detections(sure, path, pictures)) > 0
    monkeypatch.setattr(_detection_compare, "SCORE_NUDGE", 0)
    with pytest.raises(ExportError, match="does not find"):
        compare_detections(sure, path, pictures)


def test_no_box_is_no_error(one):
    assert_same(in_onnxruntime(one.path, torch.zeros(3, 50, 70)), in_torch(one.detector, torch.zeros(3, 50, 70)))
    sure = deepcopy(one.detector)
    sure.roi_heads.score_thresh = 1.0
    with pytest.raises(ExportError, match=r"finds nothing.*images"):
        compare_detections(sure, _with(one.path, _nothing_is_sure), [rectangles(90, 120, 5)])


def test_the_file_is_self_contained_and_plain(exported):
    model = onnx.load(exported.path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"If", "Loop", "Scan", "Tile", "BatchNormalization"}
    assert {entry.domain for entry in model.opset_import} == {""}
    assert list(exported.path.parent.iterdir()) == [exported.path]
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    for layer in (m for m in exported.detector.modules() if isinstance(m, CalibratedConv2d)):
        assert not any(np.array_equal(w.squeeze(), layer.calibration.detach().squeeze()) for w in weights)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert props["task"] == "object-detection"
    assert json.loads(props["input_range"]) == [0, 1]
    metadata = DetectorMetadata.from_props(props)
    assert (metadata.labels, metadata.branches) == (tuple(LABELS), 2)
    assert (metadata.min_size, metadata.max_size) == (96, 160)


def test_the_report_says_what_was_compared(exported):
    report = exported.report
    assert len(report.pictures) == 4
    assert (report.pictures[-1].height, report.pictures[-1].width) == (90, 200)
    assert report.detections == sum(picture.detections for picture in report.pictures) > 50
    assert 0 < report.max_box_difference <= 0.5
    assert 0 < report.max_score_difference <= 1e-3
    assert report.file_size == exported.path.stat().st_size
    assert report.nodes["NonMaxSuppression"] == 2
    assert json.loads(json.dumps(report.to_dict()))["detections"] == report.detections


def _nothing_is_sure(model: ModelProto) -> None:
    _change(model, "roi_heads.box_predictor.cls_score.bias", lambda bias: bias + np.float32([9e3, 0, 0, 0]))


def _change(model: ModelProto, name: str, changed: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(changed(numpy_helper.to_array(tensor)), name))


def _with(path: Path, change: Callable[[ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path.with_name("changed.onnx"))
    return path.with_name("changed.onnx")


@pytest.mark.parametrize(
    ("layer", "changed", "named"),
    [
        ("roi_heads.box_predictor.bbox_pred.bias", lambda bias: bias + np.float32(0.3), "finds"),
        ("roi_heads.box_predictor.cls_score.bias", lambda bias: bias + np.float32([0.05, 0, 0, 0]), "score|finds"),
        ("rpn.head.cls_logits.weight", np.negative, "finds"),
        ("prepare_mean", lambda mean: mean + np.float32(0.02), "finds|score"),
    ],
)
def test_a_file_that_differs_is_not_left_behind(one, tmp_path, monkeypatch, layer, changed, named):
    wrong = onnx.load(one.path)
    _change(wrong, layer, changed)
    monkeypatch.setattr(_detection, "convert_detector", lambda *arguments: wrong)
    (tmp_path / "detector.onnx").write_text("an older one")
    with pytest.raises(ExportError, match=named):
        detector_to_onnx(one.detector, tmp_path / "detector.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an older one"]


def test_only_ties_are_forgiven(one):
    picture = rectangles(120, 160, 10)
    scores = in_torch(one.detector, picture)["scores"]
    for limit, tied in ((np.nextafter(scores[-1], np.float32(1)), True), (scores[-1] + 0.02, False)):
        strict = deepcopy(one.detector)
        strict.roi_heads.score_thresh = float(limit)
        assert len(in_torch(strict, picture)["scores"]) < len(scores)
        if tied:
            (difference,) = compare_detections(strict, one.path, [picture])
            assert difference.ties > 0
        else:
            with pytest.raises(ExportError, match="the exported graph finds"):
                compare_detections(strict, one.path, [picture])


def test_what_cannot_be_exported_is_refused(tmp_path):
    detector, path = seeded_detector(labels=None, backbone="ccnn_alexnet"), tmp_path / "x.onnx"
    with pytest.raises(MetadataError, match="3 kinds of objects and 0 names"):
        detector_to_onnx(detector, path)
    with pytest.raises(ConfigurationError, match="create_detector"):
        detector_to_onnx(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None), path)
    with pytest.raises(ConfigurationError, match="opset"):
        detector_to_onnx(detector, path, labels=LABELS, opset=17)
    for wrong in (torch.zeros(1, 3, 9, 9), torch.full((3, 9, 9), 2.0), torch.zeros(3, 9, 9, dtype=torch.uint8), 1):
        with pytest.raises(ConfigurationError, match="images must be float tensors"):
            detector_to_onnx(detector, path, labels=LABELS, images=[wrong])
    assert not list(tmp_path.iterdir())
