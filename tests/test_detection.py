"""Contract of ccnn_zoo.detection.create_detector: torchvision's detector on our backbones."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

import ccnn_zoo
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.detection import create_detector, load_detector, save_detector
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError
from ccnn_zoo.layers import CalibratedConv2d

SMALL = {"min_size": 96, "max_size": 160, "representation_size": 32}
RECORD = TrainingRecord(data="none", seed=0, epochs=0)


def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 120, 160, generator=generator), torch.rand(3, 150, 100, generator=generator)]


def targets() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[10.0, 10, 60, 60], [40, 50, 90, 100]])
    return [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in pictures()]


def detector(backbone: str = "ccnn_resnet18", **changes: object) -> FasterRCNN:
    torch.manual_seed(0)
    return create_detector(backbone, **{"num_classes": 2, **SMALL, **changes})


def settled(model: FasterRCNN) -> FasterRCNN:
    """Return the detector in eval mode, with statistics of batch normalisation that are not those of the start."""
    with torch.no_grad():
        model.train()(pictures(), targets())
    return model.eval()


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("ccnn_resnet18", {"merge": "mean"}),
        ("ccnn_alexnet", {"merge": "concat"}),
        ("ccnn_resnet18_cifar", {"merge": "max", "fpn": True, "mixing": "dense"}),
        ("resnet18", {"fpn": True}),
    ],
)
@torch.no_grad()
def test_folding_a_detector_changes_no_bit(backbone, options):
    model = settled(detector(backbone, branches=2, **options))
    folded = ccnn_zoo.fold(model)
    assert not any(isinstance(module, CalibratedConv2d) for module in folded.modules())
    found = model(pictures())
    assert all(len(each["boxes"]) for each in found)
    assert same(found, folded(pictures()))


@torch.no_grad()
def test_one_branch_is_torchvisions_detector_on_the_plain_network():
    model = settled(detector(branches=1))
    plain = timm.create_model("resnet18", features_only=True, out_indices=[3])
    body = {name: value for name, value in model.backbone.body.state_dict().items() if "calibration" not in name}
    plain.load_state_dict(body)

    class First(nn.Module):
        out_channels = 256

        def __init__(self) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, images: Tensor) -> Tensor:
            return self.plain(images)[0]

    reference = FasterRCNN(
        First(),
        rpn_anchor_generator=AnchorGenerator(((64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=torchvision.models.detection.faster_rcnn.TwoMLPHead(256 * 49, 32),
        box_predictor=torchvision.models.detection.faster_rcnn.FastRCNNPredictor(32, 3),
        min_size=96,
        max_size=160,
    ).eval()
    reference.rpn.load_state_dict(model.rpn.state_dict())
    reference.roi_heads.load_state_dict(model.roi_heads.state_dict())
    assert same(model(pictures()), reference(pictures()))


@pytest.mark.parametrize("merge", ["mean", "max", "concat"])
@torch.no_grad()
def test_branches_meet_at_every_level(merge):
    model = settled(detector(branches=2, fpn=True, merge=merge))
    images = torch.stack([image[:, :96, :96] for image in pictures()])
    for level, features in enumerate(model.backbone.body(images)):
        one, other = features[:, : features.shape[1] // 2], features[:, features.shape[1] // 2 :]
        assert not torch.equal(one, other)
        met = {"mean": (one + other) / 2, "max": torch.maximum(one, other), "concat": features}[merge]
        given = []
        with model.backbone.pyramid.register_forward_pre_hook(lambda _, args, given=given: given.append(args[0])):
            model.backbone(images)
        torch.testing.assert_close(given[0][str(level)], met)


def test_anchors_are_those_of_the_paper():
    model = detector()
    images = ImageList(torch.zeros(1, 3, 608, 800), [(600, 800)])
    anchors = model.rpn.anchor_generator(images, [torch.zeros(1, 256, 38, 50)])[0]
    assert len(anchors) == 38 * 50 * 12
    sides = anchors[:12, 2:] - anchors[:12, :2]
    expected = {(side, ratio) for side in (64, 128, 256, 512) for ratio in (0.5, 1.0, 2.0)}
    found = {(round((w * h) ** 0.5 / 64) * 64, round(h / w, 1)) for w, h in sides.tolist()}
    assert found == expected
    assert model.rpn.fg_bg_sampler.batch_size_per_image == 256
    assert create_detector("ccnn_resnet18", num_classes=1).transform.min_size == (600,)


@torch.no_grad()
def test_weights_of_a_plain_classifier_keep_their_function():
    torch.manual_seed(0)
    plain = torchvision.models.resnet18(num_classes=7)
    plain.train()(torch.rand(4, 3, 64, 64))
    plain.eval()
    images = torch.rand(2, 3, 64, 64)
    expected = plain.maxpool(plain.relu(plain.bn1(plain.conv1(images))))
    expected = plain.layer3(plain.layer2(plain.layer1(expected)))
    for branches in (1, 2):
        model = detector(branches=branches, backbone_weights=plain, diversity=0.0).eval()
        torch.testing.assert_close(model.backbone(images)["0"], expected, rtol=1e-4, atol=1e-4)
    apart = detector(branches=2, backbone_weights=plain, diversity=0.5).eval().backbone.body(images)[0]
    assert not torch.equal(*apart.chunk(2, dim=1))


@pytest.mark.parametrize("branches", [1, 2])
@torch.no_grad()
def test_weights_of_our_own_checkpoint_load(tmp_path, branches):
    torch.manual_seed(0)
    classifier = timm.create_model("ccnn_nin", branches=branches, num_classes=5)
    save_checkpoint(tmp_path / "own.safetensors", classifier, RECORD)
    model = detector("ccnn_nin", branches=2, backbone_weights=tmp_path / "own.safetensors", diversity=0.0)
    images = torch.rand(1, 3, 64, 64)
    expected = load_checkpoint(tmp_path / "own.safetensors")[0].features[:20](images)
    if branches == 2:
        expected = sum(expected.chunk(2, dim=1)) / 2
    torch.testing.assert_close(model.eval().backbone(images)["0"], expected, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigurationError, match=r"layer2\.0\.conv1\.weight"):
        detector(branches=1, backbone_weights=torchvision.models.resnet50())
    with pytest.raises(ConfigurationError, match=r"branches=4.*branches=2"):
        detector(branches=2, backbone_weights=timm.create_model("ccnn_resnet18", branches=4))
    with pytest.raises(RepositoryError, match=r"none\.safetensors"):
        detector(backbone_weights=tmp_path / "none.safetensors")
    with pytest.raises(ConfigurationError, match="no_such_network"):
        detector(backbone_weights="no_such_network")


def test_normalisation_of_trained_backbones_stays_as_it_is():
    frozen = detector(backbone_weights=torchvision.models.resnet18())
    free = detector()
    for model, moves in ((frozen, False), (free, True)):
        before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
        sum(model.train()(pictures(), targets()).values()).backward()
        after = model.backbone.state_dict()
        moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
        assert bool(moved) == moves
        norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        assert all((norm.weight.grad is not None) == moves for norm in norms)
    assert frozen.backbone.body.conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("folded", [False, True])
@torch.no_grad()
def test_a_checkpoint_gives_the_detector_back(tmp_path, folded):
    model = settled(detector(labels=["cat", "dog"], backbone_kwargs={"channels": [8, 8, 16, 16]}))
    if folded:
        model = ccnn_zoo.fold(model)
    save_detector(tmp_path / "model.safetensors", model, RECORD)
    loaded, record = load_detector(tmp_path / "model.safetensors")
    assert record == RECORD
    assert loaded.config["labels"] == ["cat", "dog"]
    assert same(loaded(pictures()), model(pictures()))


def test_what_is_no_checkpoint_of_a_detector_is_refused(tmp_path):
    save_checkpoint(tmp_path / "classifier.safetensors", timm.create_model("ccnn_resnet20_cifar"), RECORD)
    with pytest.raises(IntegrityError, match=r"no.*detector"):
        load_detector(tmp_path / "classifier.safetensors")
    with pytest.raises(RepositoryError, match="voc07_detection"):
        load_detector(tmp_path / "missing.safetensors")
    with pytest.raises(ConfigurationError, match="create_detector"):
        save_detector(
            tmp_path / "x", torchvision.models.detection.fasterrcnn_resnet50_fpn(weights_backbone=None), RECORD
        )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"backbone": "no_network"}, "no_network"),
        ({"num_classes": 0}, "num_classes"),
        ({"labels": ["cat"]}, "labels"),
        ({"branches": 0}, "branches"),
        ({"merge": "sum"}, "sum"),
        ({"stride": 1}, "stride"),
        ({"fpn": True, "anchor_sizes": [64]}, "anchor_sizes"),
        ({"backbone_kwargs": {"colour": 1}}, "colour"),
        ({"box_colour": 1}, "box_colour"),
        ({"box_roi_pool": None}, "box_roi_pool"),
        ({"folded": True, "backbone_weights": "x.safetensors"}, "folded"),
    ],
)
def test_what_makes_no_detector_is_refused(changes, named):
    with pytest.raises(ConfigurationError, match=named):
        detector(**changes)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [name for name in timm.list_models("ccnn_*") if "1202" not in name])
@pytest.mark.parametrize("fpn", [False, True])
@torch.no_grad()
def test_every_network_is_a_backbone(backbone, fpn):
    model = settled(detector(backbone, branches=2, fpn=fpn))
    assert same(model(pictures()), ccnn_zoo.fold(model)(pictures()))
