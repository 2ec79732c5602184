"""Names, counts and costs of the zoo, held against the paper, timm and torchvision."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from timm.layers import DropPath
from timm.optim import param_groups_weight_decay
from torch import nn

import ccnn_zoo
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.models import table

DEFAULT_BRANCHES = {
    "ccnn": 2,  # by default on timm's resnet18
    "ccnn_alexnet": 2,
    "ccnn_nin": 2,
    "ccnn_resnet18": 2,
    "ccnn_resnet34": 2,
    "ccnn_resnet50": 2,
    "ccnn_resnet101": 2,
    "ccnn_resnet18_cifar": 4,
    "ccnn_resnet20_cifar": 2,
    "ccnn_resnet32_cifar": 2,
    "ccnn_resnet44_cifar": 2,
    "ccnn_resnet56_cifar": 2,
    "ccnn_resnet110_cifar": 2,
    "ccnn_resnet1202_cifar": 2,
    "ccnn_vgg16": 2,
    "ccnn_wrn28_4": 3,
    "ccnn_wrn28_10": 2,
    "ccnn_wrn40_4": 2,
}


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in table()}


def count(model: nn.Module) -> int:
    """Parameters, R neglected as in the paper's Table 2."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith("calibration"))


def on_meta(name: str, **kwargs: object) -> nn.Module:
    return timm.create_model(name, device="meta", **kwargs)


def test_all_networks_of_the_paper_are_registered_with_their_branches(rows):
    assert {name: row.branches for name, row in rows.items()} == DEFAULT_BRANCHES


def test_table_can_be_asked_for_some_names():
    assert [row.name for row in table("*wrn*")] == ["ccnn_wrn28_4", "ccnn_wrn28_10", "ccnn_wrn40_4"]
    assert table("resnet18") == []


@pytest.mark.parametrize(
    ("name", "arguments", "millions"),
    [
        ("ccnn_resnet110_cifar", {"branches": 1}, 1.7),
        ("ccnn_wrn40_4", {"branches": 1}, 8.9),
        ("ccnn_wrn28_10", {"branches": 1}, 36.5),
        ("ccnn_wrn40_4", {"branches": 2, "folded": True}, 17.9),
        ("ccnn_wrn28_4", {"branches": 3, "folded": True}, 17.6),
        ("ccnn_wrn28_4", {"branches": 3, "folded": True, "num_classes": 100}, 17.6),
    ],
)
def test_counts_are_those_of_table_2(name, arguments, millions):
    assert round(count(on_meta(name, **arguments)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("ccnn_resnet110_cifar", [16, 16, 32, 64]),
        ("ccnn_wrn40_4", [16, 64, 128, 256]),
        ("ccnn_wrn28_4", [64, 64, 128, 256]),
    ],
)
def test_stem_and_stages_have_the_kernels_of_table_2(name, channels):
    assert on_meta(name, branches=1, features_only=True).feature_info.channels() == channels
    tapped = on_meta(name, branches=1, features_only=True)(torch.empty(1, 3, 32, 32, device="meta"))
    assert [level.shape[1] for level in tapped] == channels


def test_wrn28_4_with_a_stem_of_16_is_that_of_zagoruyko_and_komodakis():
    # 5.85M: 16 * 27 + the blocks of stages 64-128-256, each first one with its shortcut, and the classifier.
    def stage(before: int, width: int) -> int:
        first = 2 * before + 9 * before * width + 2 * width + 9 * width**2 + before * width
        return first + 3 * 2 * (2 * width + 9 * width**2)

    plain = 16 * 27 + stage(16, 64) + stage(64, 128) + stage(128, 256) + 2 * 256 + 257 * 10
    assert count(on_meta("ccnn_wrn28_4", branches=1, wide_stem=False)) == plain


@pytest.mark.parametrize(
    ("depth", "parameters"),
    # He et al., Table 6: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M, 19.4M. The paper's Table 2 says 10.2M for the last.
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962), (1202, 19_421_274)],
)
def test_cifar_resnets_have_the_counts_of_he_et_al(depth, parameters):
    assert count(on_meta(f"ccnn_resnet{depth}_cifar", branches=1)) == parameters


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("ccnn_resnet18", "resnet18"),
        ("ccnn_resnet34", "resnet34"),
        ("ccnn_resnet50", "resnet50"),
        ("ccnn_resnet101", "resnet101"),
        ("ccnn_vgg16", "vgg16_bn"),
    ],
)
def test_one_branch_has_the_parameters_of_timms_network(name, plain):
    ours = on_meta(name, branches=1).named_parameters()
    assert {n: p.shape for n, p in ours if not n.endswith("calibration")} == {
        n: p.shape for n, p in on_meta(plain).named_parameters()
    }


def test_one_branch_has_the_parameters_of_torchvisions_alexnet():
    with torch.device("meta"):
        plain = torchvision.models.alexnet()
    ours = on_meta("ccnn_alexnet", branches=1).named_parameters()
    assert {n: p.shape for n, p in ours if not n.endswith("calibration")} == {
        n: p.shape for n, p in plain.named_parameters()
    }


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ccnn_resnet18", torchvision.models.ResNet18_Weights.IMAGENET1K_V1),
        ("ccnn_resnet50", torchvision.models.ResNet50_Weights.IMAGENET1K_V2),
        ("ccnn_vgg16", torchvision.models.VGG16_BN_Weights.IMAGENET1K_V1),
    ],
)
def test_two_branches_take_twice_the_operations_that_torchvision_publishes(rows, name, weights):
    assert rows[name].macs / 1e9 == pytest.approx(2 * weights.meta["_ops"], rel=1e-3)


def test_table_counts_what_a_built_network_holds(rows):
    row = rows["ccnn_resnet20_cifar"]
    model = timm.create_model(row.name)
    assert row.trained_parameters == sum(p.numel() for p in model.parameters())
    assert row.folded_parameters == sum(p.numel() for p in ccnn_zoo.fold(model).parameters())
    assert row.input_size == (3, 32, 32)


@pytest.mark.parametrize("name", sorted(DEFAULT_BRANCHES.keys() - {"ccnn_resnet1202_cifar"}))
def test_calibration_is_never_decayed(name):
    model = on_meta(name)
    calibrations = {n for n, _ in model.named_parameters() if n.endswith("calibration")}
    assert model.no_weight_decay() == calibrations
    assert len(calibrations) == sum(isinstance(m, ccnn_zoo.CalibratedConv2d) for m in model.modules())
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed
    assert not any(id(p) in decayed for n, p in model.named_parameters() if n in calibrations)


@pytest.mark.parametrize("name", ["ccnn_resnet20_cifar", "ccnn_wrn28_4"])
def test_stochastic_depth_reaches_the_blocks(name):
    dropped = [m.drop_prob for m in on_meta(name, drop_path_rate=0.2).modules() if isinstance(m, DropPath)]
    assert dropped == sorted(dropped)
    assert dropped[-1] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "output_stride", "reductions"),
    [
        ("ccnn_resnet18", 16, [2, 4, 8, 16, 16]),
        ("ccnn_resnet18_cifar", 4, [1, 1, 2, 4, 4]),
        ("ccnn_resnet20_cifar", 2, [1, 1, 2, 2]),
        ("ccnn_wrn28_4", 2, [1, 1, 2, 2]),
        ("ccnn_wrn28_4", 32, [1, 1, 2, 4]),
    ],
)
def test_output_stride_is_the_largest_reduction(name, output_stride, reductions):
    features = on_meta(name, output_stride=output_stride, features_only=True)
    assert features.feature_info.reduction() == reductions
    images = torch.empty(1, 3, 64, 64, device="meta")
    assert [64 // f.shape[-1] for f in features(images)] == reductions


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ccnn_resnet20_cifar", {"output_stride": 1}, "output_stride must be 2, 4, 8"),
        ("ccnn_alexnet", {"global_pool": "catavgmax"}, "got 'catavgmax'"),
        ("ccnn_nin", {"branches": 0}, "got 0"),
        ("ccnn_nin", {"merge": "sum"}, "got 'sum'"),
        ("ccnn_nin", {"mixing": "sparse"}, "got 'sparse'"),
        ("ccnn_wrn28_4", {"depth": 30}, "got 30"),
    ],
)
def test_arguments_out_of_range_are_named(name, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        on_meta(name, **arguments)


def test_without_a_classifier_there_are_no_logits_of_branches():
    model = timm.create_model("ccnn_resnet20_cifar", num_classes=0)
    with pytest.raises(ConfigurationError, match=r"num_classes=0.*reset_classifier"):
        model.forward_branches(torch.zeros(1, 3, 32, 32))
