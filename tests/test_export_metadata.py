"""Labels and preprocessing come from timm's own fields, and a gap is an error that says the remedy."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn

import ccnn_zoo
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.errors import MetadataError
from ccnn_zoo.export import metadata_of

TEN = tuple(f"class {i}" for i in range(10))


def create(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "ccnn_resnet18"])
def test_preprocessing_is_what_timm_resolves(name):
    model = create(name)
    metadata, timms = metadata_of(model), resolve_model_data_config(model)
    assert {field: getattr(metadata, field) for field in timms} == timms
    assert metadata.architecture == name


@pytest.mark.parametrize("name", ["tresnet_m", "csatv2", "vit_tiny_patch16_224"])
def test_channels_are_the_images_whatever_the_first_convolution_reads(name):
    assert metadata_of(create(name)).input_size[0] == 3
    with pytest.raises(MetadataError, match="images of 4 channels, its pretrained_cfg says 3"):
        metadata_of(create(name, in_chans=4))


@pytest.mark.parametrize("branches", [1, 2, 4])
def test_branches_are_known_calibrated_folded_and_plain(branches):
    model = timm.create_model("ccnn_resnet18_cifar", branches=branches)
    plain = timm.create_model("resnet18", num_classes=10)
    assert metadata_of(model, TEN).branches == branches
    assert metadata_of(ccnn_zoo.fold(model), TEN).branches == branches
    assert metadata_of(plain, TEN).branches == 1
    for timms in (plain, create("resnetv2_18", num_classes=10)):  # one ends in a linear layer, one in a convolution
        assert metadata_of(ccnn_zoo.fold(ccnn_zoo.calibrate(timms, branches)), TEN).branches == branches


def test_labels_are_the_networks_own_else_the_given_else_imagenets():
    assert metadata_of(create("resnet18", num_classes=10), TEN).labels == TEN
    own = create("resnet18", num_classes=10, pretrained_cfg_overlay={"label_names": list(TEN)})
    assert metadata_of(own).labels == metadata_of(own, TEN).labels == TEN
    assert list(metadata_of(create("resnet18")).labels) == ImageNetInfo().label_descriptions()
    table = {index: TEN[index] for index in (*range(5, 10), *range(5))}
    named = create("resnet18", num_classes=10, pretrained_cfg_overlay={"label_names": table})
    assert metadata_of(named).labels == metadata_of(named, TEN).labels == TEN
    thousand = [f"part {i}" for i in range(1000)]
    assert list(metadata_of(create("resnet18"), thousand).labels) == thousand


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (nn.Conv2d(3, 4, 3), None, "Conv2d has no pretrained_cfg.*timm.create_model"),
        (create("resnet18", num_classes=10), TEN[:9], "9 labels for 10 classes"),
        (create("resnet18"), TEN, "10 labels for 1000 classes"),
        (create("resnet18", num_classes=10), (), "0 labels for 10 classes"),
        (create("resnet18", num_classes=10), "abcdefghij", "sequence of strings, got 'abcdefghij'"),
        (create("resnet18", num_classes=10), range(10), "sequence of strings"),
        (create("resnet18", num_classes=0), None, "ResNet is no classifier.*reset_classifier"),
        (create("resnet18", in_chans=1), None, "images of 1 channels, its pretrained_cfg says 3. Set input_size"),
        (
            create("resnet18", num_classes=10, pretrained_cfg_overlay={"label_names": list(TEN)}),
            TEN[::-1],
            "labels differ from model.pretrained_cfg",
        ),
        (
            create("resnet18", num_classes=2, pretrained_cfg_overlay={"label_names": {"0": "cat", "2": "dog"}}),
            None,
            "without the index '1'",
        ),
        (create("resnet18", num_classes=2), ["cat", "\x1b[2Jdog"], "one string per class, without control characters"),
        (create("resnet18", pretrained_cfg_overlay={"interpolation": "random"}), None, "interpolation must be one of"),
        (nn.Sequential(create("ccnn_resnet18", branches=2), create("ccnn_resnet18", branches=4)), None, "pretrained"),
    ],
)
def test_a_gap_or_contradiction_is_an_error_with_its_remedy(model, labels, message):
    with pytest.raises(MetadataError, match=message):
        metadata_of(model, labels)


def shipped() -> nn.Module:
    return timm.create_model("ccnn_resnet18_cifar.mnist", pretrained=True)


def converted() -> nn.Module:
    plain = timm.create_model("resnet18", num_classes=10, pretrained_cfg_overlay={"label_names": list("0123456789")})
    return ccnn_zoo.calibrate(plain, 2)


def numbered(model: nn.Module, count: int) -> None:
    with pytest.warns(
        UserWarning, match=f"names of the {count} classes of .* are unknown.*class 0 to class {count - 1}"
    ):
        assert metadata_of(model).labels == tuple(f"class {number}" for number in range(count))


def test_classes_without_names_are_numbered_and_that_is_said_once():
    numbered(create("resnet18", num_classes=10), 10)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            metadata_of(create("resnet18", num_classes=11))
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metadata_of(create("resnet18", num_classes=10), TEN).labels == TEN


@pytest.mark.parametrize("make", [shipped, converted])
def test_a_new_classifier_does_not_go_by_the_names_of_the_old_one(make):
    assert metadata_of(make()).labels == tuple("0123456789")
    for classes in (3, 10, 1000):
        model = make()
        model.reset_classifier(classes)
        numbered(model, classes)
        given = [f"kind {number}" for number in range(classes)]
        assert metadata_of(model, given).labels == tuple(given)
        assert metadata_of(ccnn_zoo.fold(model), given).labels == tuple(given)


def test_a_new_classifier_stays_without_names_in_its_checkpoint(tmp_path):
    for name, classes in (("ccnn_resnet18_cifar.mnist", 10), ("ccnn_resnet18", 1000)):
        model = timm.create_model(name, pretrained="." in name)
        model.reset_classifier(classes)
        save_checkpoint(tmp_path / "x.safetensors", model, TrainingRecord("none", 0, 0))
        numbered(load_checkpoint(tmp_path / "x.safetensors")[0], classes)


def test_names_of_another_number_of_classes_are_stale():
    """timm's own networks do not say that their classifier is new, but its size does."""
    model = create("resnet18", num_classes=10, pretrained_cfg_overlay={"label_names": list(TEN)})
    model.reset_classifier(3)
    assert metadata_of(model, ["a", "b", "c"]).labels == ("a", "b", "c")
    with pytest.warns(UserWarning, match="its 10 label_names are those of an earlier classifier"):
        assert metadata_of(model).labels == ("class 0", "class 1", "class 2")


def test_layers_with_different_numbers_of_branches_are_refused():
    model = create("ccnn_resnet18", branches=2)
    model.fc.branches = 4
    with pytest.raises(MetadataError, match=r"different numbers of branches: \[2, 4\]"):
        metadata_of(model)
