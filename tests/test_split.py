"""``ccnn_zoo.split``: K plain networks and what merges them. That they are the right ones, the families' tests show."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from separate_networks import randomize
from torch import Tensor, nn

import ccnn_zoo
from ccnn_zoo.detection import create_detector
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.layers import BranchConv2d

BRANCHES = 3
OURS = ccnn_zoo.CalibratedConv2d | ccnn_zoo.BranchLinear | BranchConv2d


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def of_the_zoo(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    arguments = {"layers": (1, 1, 1, 1), "num_classes": 5, "branches": BRANCHES, **kwargs}
    return randomize(timm.create_model("ccnn_resnet18_cifar", **arguments)).eval()


def of_timm(base: str = "resnet18", branches: int = BRANCHES, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    plain = timm.create_model(base, num_classes=5, **kwargs)
    return randomize(ccnn_zoo.calibrate(plain, branches, diversity=1.0)).eval()


THIN = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}


@torch.no_grad()
def check_same(apart: nn.Module, model: nn.Module, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    expected = model(x)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(apart(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_the_parts_are_plain_and_share_nothing_with_the_network():
    model = of_the_zoo()
    before = copy.deepcopy(model.state_dict())
    apart = ccnn_zoo.split(model)
    assert len(apart.branches) == BRANCHES
    for network in apart.branches:
        assert not any(isinstance(module, OURS) for module in network.modules())
        assert {conv.groups for conv in network.modules() if isinstance(conv, nn.Conv2d)} == {1}
    with torch.no_grad():
        for tensor in apart.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("merge", ["mean", "max", "concat", "probability"])
def test_what_merges_takes_the_outputs_of_the_networks_in_their_order(merge):
    model = of_the_zoo(merge=merge)
    apart = ccnn_zoo.split(model)
    x = images()
    with torch.no_grad():
        outputs = [network(x) for network in apart.branches]
        assert [tuple(output.shape) for output in outputs] == [(2, 64)] * BRANCHES
        assert torch.equal(apart.merge(outputs), apart(x))
        if merge in ("concat", "probability"):
            assert not torch.allclose(apart.merge(outputs[::-1]), apart(x))
    check_same(apart, model)


def test_a_folded_network_is_split_as_it_was_before():
    model = of_the_zoo()
    one, other = ccnn_zoo.split(model), ccnn_zoo.split(ccnn_zoo.fold(model))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("kwargs", [{"num_classes": 0}, {"num_classes": 0, "global_pool": ""}], ids=["pooled", "maps"])
def test_without_a_classifier_the_features_of_all_branches_stand_side_by_side(kwargs):
    model = of_the_zoo(**kwargs)
    check_same(ccnn_zoo.split(model), model)


def test_branches_that_meet_before_hidden_layers_end_there():
    torch.manual_seed(0)
    model = timm.create_model("ccnn_alexnet", num_classes=5, branches=2).eval()
    apart = ccnn_zoo.split(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert apart.branches[0](x).shape == (2, 256 * 6 * 6)
    assert [type(layer) for layer in apart.merge.behind] == [nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Linear]
    check_same(apart, model, x)


def test_one_branch_is_the_plain_network():
    model = of_timm(branches=1, **THIN)
    check_same(ccnn_zoo.split(model), model)


def test_parts_of_a_network_of_timms_are_networks_of_timms():
    model = of_timm(**THIN)
    plain = timm.create_model("resnet18", num_classes=0, **THIN)
    for network in ccnn_zoo.split(model).branches:
        assert type(network) is type(plain)
        assert (network.num_features, network.num_classes) == (plain.num_features, 0)
        assert network.feature_info == plain.feature_info
        assert network.pretrained_cfg["architecture"] == "resnet18"
        assert vars(network).keys() == vars(plain).keys()


@pytest.mark.parametrize("build", [of_the_zoo, lambda: timm.create_model("ccnn", base="resnet18", branches=2)])
def test_parts_are_built_again_by_timm_from_what_they_say_of_themselves(build):
    network = ccnn_zoo.split(build()).branches[1]
    again = timm.create_model(network.pretrained_cfg["architecture"], **network._model_args).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images()), network.eval()(images()))


def test_mode_dtype_device_and_what_is_frozen_are_kept():
    model = of_the_zoo().train().bfloat16()
    model.conv1.requires_grad_(False)
    apart = ccnn_zoo.split(model)
    assert all(module.training for module in apart.modules())
    assert {tensor.dtype for tensor in apart.parameters()} == {torch.bfloat16}
    assert not any(network.conv1.weight.requires_grad for network in apart.branches)
    assert all(network.layer1[0].conv1.weight.requires_grad for network in apart.branches)
    with torch.device("meta"):
        shapes = ccnn_zoo.split(timm.create_model("ccnn_resnet18_cifar", branches=2))
    assert all(tensor.is_meta for tensor in shapes.parameters())


def test_random_numbers_are_not_used_up():
    model = of_the_zoo()
    torch.manual_seed(5)
    ccnn_zoo.split(model)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_branches_that_read_each_other_are_refused_with_the_remedy():
    with pytest.raises(ConfigurationError, match=r"mixing='dense': each branch reads all the others.*mixing='grouped'"):
        ccnn_zoo.split(timm.create_model("ccnn_resnet18_cifar", mixing="dense"))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(2, 2),
        lambda: timm.create_model("resnet18"),
        lambda: ccnn_zoo.CalibratedConv2d(3, 4, 3),
        lambda: create_detector("ccnn_resnet18", num_classes=2),
    ],
    ids=["no network", "a plain one", "a layer", "a detector"],
)
def test_what_is_no_calibrated_network_is_refused_by_its_class(build):
    model = build()
    with pytest.raises(ConfigurationError, match=rf"{type(model).__name__} has no branches to take apart: pass what"):
        ccnn_zoo.split(model)


def test_a_wrapper_is_refused_with_the_remedy():
    with pytest.raises(ConfigurationError, match=r"DataParallel wraps the network: pass \.module"):
        ccnn_zoo.split(nn.DataParallel(of_the_zoo()))


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class Scaled(nn.Module):
    """A network with something behind its classifier."""

    def __init__(self, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, 5)
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc(self.pool(self.conv(x)))
        return 2 * logits if self.behind is None else self.behind(logits)


def test_what_follows_the_merge_goes_with_it_if_it_is_a_layer():
    model = randomize(ccnn_zoo.calibrate(Scaled(nn.Softplus()), 2, diversity=1.0))
    apart = ccnn_zoo.split(model)
    assert [type(layer) for layer in apart.merge.behind] == [nn.Softplus]
    check_same(apart, model)
    with pytest.raises(CalibrationError, match=r"does more behind fc, .* than call one layer after another"):
        ccnn_zoo.split(ccnn_zoo.calibrate(Scaled(), 2))


def test_what_was_put_into_a_network_later_is_refused_by_its_name():
    model = of_the_zoo()
    model.layer2 = nn.Sequential(model.layer2, Gain())
    with pytest.raises(CalibrationError, match=r"layer2\.1 \(Gain\) has parameters or buffers \(gain\)"):
        ccnn_zoo.split(model)
    model = of_the_zoo()
    model.layer2 = nn.Sequential(model.layer2, nn.ChannelShuffle(BRANCHES))
    with pytest.raises(CalibrationError, match="branches 0, 1, 2 of CalibratedResNet do not give alone what they give"):
        ccnn_zoo.split(model)


def test_a_size_that_the_network_takes_is_asked_for():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 7, 5))
    model = randomize(ccnn_zoo.calibrate(plain, 2, diversity=1.0, input_size=(3, 6, 9)))
    with pytest.raises(CalibrationError, match=r"does not run on images of .*give split input_size=\(chan"):
        ccnn_zoo.split(model)
    check_same(ccnn_zoo.split(model, input_size=(3, 6, 9)), model, torch.randn(2, 3, 6, 9))
