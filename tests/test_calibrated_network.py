"""What `calibrate` returns is a network like those of the zoo: the same methods, copies, pickles, timm's contract."""

from __future__ import annotations

import pickle
from copy import copy, deepcopy
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from separate_networks import load_branch, randomize
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from ccnn_zoo import CalibratedConv2d, calibrate, fold
from ccnn_zoo._arguments import ARGUMENTS
from ccnn_zoo._conversion.options import OPTIONS
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, save_checkpoint
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.layers import BranchConv2d, BranchLinear

RECORD = TrainingRecord("noise", seed=0, epochs=0)
THIN = {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16)}


def thin(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return randomize(timm.create_model("resnet18", **{"num_classes": 5, **THIN, **kwargs})).eval()


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nn.Module:
    return calibrate(thin(), branches=3, diversity=1.0)


# The mixin


@pytest.mark.parametrize("merge", ["mean", "max", "concat"])
@pytest.mark.parametrize("pool", ["avg", "max", "catavgmax"])
@torch.no_grad()
def test_a_new_classifier_lets_the_branches_meet_as_the_old_one_did(merge, pool):
    model = calibrate(thin(), 3, merge, diversity=1.0)
    model.reset_classifier(7, pool)
    like = calibrate(thin(num_classes=7, global_pool=pool), 3, merge)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in like.named_parameters()}
    assert model(images()).shape == (2, 7)
    assert (model.num_features, model.head_hidden_size) == (like.num_features, like.head_hidden_size)
    if merge != "max":
        torch.testing.assert_close(model.forward_branches(images()).mean(0), model(images()))


@torch.no_grad()
def test_concatenated_pooling_keeps_the_statistics_of_a_branch_together():
    plain = thin(global_pool="catavgmax")
    model = calibrate(plain, branches=3, diversity=1.0)
    separate = torch.stack([load_branch(plain, model, k)(images()) for k in range(3)])
    # Sums of other orders: how far apart they are depends on the processor.
    torch.testing.assert_close(model.forward_branches(images()), separate, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_new_classifier_of_a_convolutional_head_lets_the_branches_meet():
    model = calibrate(timm.create_model("resnetv2_18", num_classes=5, layers=(1, 1, 1, 1)), 2, "concat", diversity=1.0)
    model.reset_classifier(7)
    assert isinstance(model.get_classifier(), BranchConv2d)
    assert model.forward_branches(images()).shape == (2, 2, 7)
    torch.testing.assert_close(model.forward_branches(images()).mean(0), model(images()))


@torch.no_grad()
def test_a_network_without_a_classifier_can_get_one(model):
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.head_hidden_size)
    with pytest.raises(ConfigurationError, match=r"num_classes=0.*reset_classifier"):
        model.forward_branches(images())
    model.reset_classifier(4)
    assert isinstance(model.fc, BranchLinear)
    assert model.forward_branches(images()).shape == (3, 2, 4)


def test_r_is_not_decayed(model):
    names = {f"{name}.calibration" for name, m in model.named_modules() if isinstance(m, CalibratedConv2d)}
    assert model.no_weight_decay() == names
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(p) in decayed for name, p in model.named_parameters() if name in names)


@pytest.mark.parametrize("branches", [1, 2])
def test_it_says_how_it_was_calibrated_and_is_of_its_plain_class(branches):
    model = calibrate(thin(), branches, "max", mixing="dense")
    assert (model.branches, model.merge, model.mixing) == (branches, "max", "dense")
    assert isinstance(model, timm.models.ResNet)
    assert type(model).__name__ == "CalibratedResNet"
    assert type(model) is type(calibrate(thin(), branches=4))
    assert model.forward_branches(images()).shape == (branches, 2, 5)


@torch.no_grad()
def test_branches_that_meet_before_hidden_layers_are_followed_to_the_end():
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(900, 6), nn.ReLU(), nn.Linear(6, 5),
        nn.LogSoftmax(dim=1),
    ).eval()  # fmt: skip
    model = calibrate(plain, branches=3, diversity=1.0)
    separate = torch.stack([load_branch(plain, model, k)(images()) for k in range(3)])
    torch.testing.assert_close(model.forward_branches(images()), separate)


@torch.no_grad()
def test_a_forward_that_is_bound_to_another_object_is_not_taken_for_that_of_the_branches():
    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3)))

    model = calibrate(Bound(), branches=2, diversity=1.0)
    model.run = model.forward
    type(model).forward = lambda self, x: self.run(x)
    with pytest.raises(ConfigurationError, match=r"\(2, 5\) of 2 branches of 2 images"):
        model.forward_branches(images())


@torch.no_grad()
def test_a_compiled_network_and_one_whose_forward_is_wrapped_tell_their_branches_apart(model):
    expected = model.forward_branches(images())
    model.compile(backend="eager")
    torch.testing.assert_close(model.forward_branches(images()), expected)
    forward = model.forward
    model.forward = lambda x: forward(x)  # as accelerate does
    torch.testing.assert_close(model.forward_branches(images()), expected)
    torch.compiler.reset()


def test_a_module_of_the_networks_own_keeps_its_name():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList([nn.Conv2d(3, 4, 3)])
            self.fc = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.branches[0](x).mean((2, 3)))

    model = calibrate(Net(), branches=2)
    assert isinstance(model.branches, nn.ModuleList)
    assert model.conversion.branches == 2
    assert model.forward_branches(images()).shape == (2, 2, 5)


@torch.no_grad()
def test_calibrating_twice_starts_from_a_network_of_one_branch_only():
    plain = thin()
    again = calibrate(calibrate(plain, branches=1), branches=4)
    torch.testing.assert_close(again(images()), plain(images()), rtol=1e-4, atol=1e-4)
    assert again.branches == 4
    folded = calibrate(fold(timm.create_model("ccnn_nin", branches=1)), branches=3)
    assert (folded.branches, folded.forward_branches(images()).shape) == (3, (3, 2, 10))
    with pytest.raises(CalibrationError, match="conv1 is calibrated already"):
        calibrate(again, branches=2)


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match=r"'mixture'.*mixing"):
        calibrate(thin(), 2, mixture="dense")
    with pytest.raises(ConfigurationError, match="rescale must be True or False, got 'no'"):
        calibrate(thin(), 2, rescale="no")


# Copies and what torch makes of it


class Plain(nn.Module):
    """As users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


COPIES = {
    "copy": copy,
    "deepcopy": deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "fold": fold,
}
NETWORKS = {
    "timm's": thin,
    "timm's, whose blocks concatenate": lambda: timm.models.densenet.DenseNet(
        growth_rate=8, block_config=(2, 3), num_classes=5
    ).eval(),
    "one's own": Plain,
    "a sequence": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    "a registered one": lambda: timm.create_model("ccnn_resnet20_cifar", branches=1, num_classes=5).eval(),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_copies_are_networks_of_the_same_kind(build, make):
    model = calibrate(build(), branches=3, diversity=1.0)
    other = make(model)
    assert torch.equal(other(images()), model(images()))
    assert torch.equal(other.forward_branches(images()), model.forward_branches(images()))


@torch.no_grad()
def test_a_graph_stays_a_graph_and_is_calibrated_all_the_same():
    plain = torch.fx.symbolic_trace(Plain())
    model = calibrate(plain, branches=3)
    torch.testing.assert_close(deepcopy(model)(images()), plain(images()))
    assert model.conversion.branches == 3


def test_a_whole_network_is_saved_and_loaded_by_torch(model, tmp_path: Path):
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(images()), model(images()))
    assert type(loaded) is type(model)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_it_is_scripted_traced_compiled_and_exported_as_the_plain_one_is(model):
    expected = model(images())
    torch.testing.assert_close(torch.jit.script(model)(images()), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images()), expected)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images()), expected)
    torch.testing.assert_close(torch.export.export(model, (images(),)).module()(images()), expected)
    torch.compiler.reset()


# Files


@pytest.mark.parametrize(
    "build",
    [
        lambda: calibrate(torchvision.models.resnet18(num_classes=5), branches=2),
        lambda: calibrate(Plain(), branches=2),
        lambda: calibrate(timm.create_model("resnet18", features_only=True, **THIN), branches=2),
        lambda: nn.Linear(3, 2),
    ],
)
def test_what_no_file_could_give_back_is_not_saved_and_the_way_out_is_named(build, tmp_path):
    model = build()
    with pytest.raises(ConfigurationError, match=r"no classifier of timm's.*model\.state_dict\(\).*save_file"):
        save_checkpoint(tmp_path / "a.safetensors", model, RECORD)
    assert not list(tmp_path.iterdir())
    save_checkpoint(tmp_path / "a.safetensors", model, RECORD, configured=False)
    with pytest.raises(ConfigurationError, match=r"load_checkpoint\(path, into=network\)"):
        load_checkpoint(tmp_path / "a.safetensors")
    other = build()
    assert load_checkpoint(tmp_path / "a.safetensors", into=other) == (other, RECORD)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigurationError, match="more tensors differ"):
        load_checkpoint(tmp_path / "a.safetensors", into=nn.Linear(3, 7))


def test_a_timm_network_that_was_altered_is_not_saved(tmp_path, model):
    model.layer1[0].act1 = nn.PReLU()
    with pytest.raises(ConfigurationError, match=r"'layer1\.0\.act1\.weight' and 0 more tensors differ"):
        save_checkpoint(tmp_path / "a.safetensors", model, RECORD)
    assert not list(tmp_path.iterdir())


def test_every_option_of_a_conversion_may_stand_in_a_file():
    assert set(OPTIONS) | {"base", "folded"} <= ARGUMENTS.keys()


# The generic name


@torch.no_grad()
def test_any_network_of_timms_is_built_by_one_name():
    torch.manual_seed(0)
    model = timm.create_model("ccnn", base="resnet18", branches=3, merge="concat", num_classes=5, in_chans=1, **THIN)
    assert isinstance(model, timm.models.ResNet)
    assert (model.branches, model.merge, model.num_classes) == (3, "concat", 5)
    assert model.eval().forward_branches(images(1)).shape == (3, 2, 5)
    other = timm.create_model("ccnn.resnet18", branches=3, num_classes=5, in_chans=1, merge="concat", **THIN)
    assert {n: p.shape for n, p in other.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert "ccnn" in timm.list_models("ccnn*")
    assert "ccnn" not in timm.list_models("ccnn_*"), "these are whole networks"


def test_without_a_base_it_is_a_resnet18_of_two_branches():
    with torch.device("meta"):
        model, expected = timm.create_model("ccnn"), timm.create_model("ccnn_resnet18", branches=2)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in expected.named_parameters()}


@torch.no_grad()
def test_pretrained_starts_from_the_plain_weights_near_their_function(tmp_path):
    plain = thin(num_classes=1000)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    given = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "plain.safetensors")}, **THIN}
    same = timm.create_model("ccnn", base="resnet18", diversity=0.0, **given).eval()
    torch.testing.assert_close(same(images()), plain(images()), rtol=1e-4, atol=1e-4)
    near = timm.create_model("ccnn", base="resnet18", **given).eval()
    difference = (near(images()) - plain(images())).abs().max()
    assert 1e-4 < difference < 0.3 * plain(images()).std()
    fresh = timm.create_model("ccnn", base="resnet18", num_classes=7, in_chans=1, **given).eval()
    assert fresh(images(1)).shape == (2, 7)
    torch.testing.assert_close(fresh.layer1[0].conv1.weight, 2 * plain.layer1[0].conv1.weight)


@torch.no_grad()
def test_checkpoint_path_holds_the_calibrated_weights(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    arguments = {"branches": 3, "num_classes": 5, **THIN}
    loaded = timm.create_model("ccnn", base="resnet18", checkpoint_path=tmp_path / "model.pth", **arguments).eval()
    assert torch.equal(loaded(images()), model(images()))
    folded = timm.create_model("ccnn", base="resnet18", folded=True, **arguments).eval()
    folded.load_state_dict(fold(model).state_dict())
    assert torch.equal(folded(images()), model(images()))


@pytest.mark.parametrize("feature_cls", [None, "list", "hook", "fx"])
@torch.no_grad()
def test_features_of_all_levels_are_those_of_all_branches(model, feature_cls, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    asked = {} if feature_cls is None else {"feature_cls": feature_cls}
    cfg = {"file": str(tmp_path / "model.pth"), "num_classes": 5, "first_conv": "conv1", "classifier": "fc"}
    features = timm.create_model(
        "ccnn", base="resnet18", branches=3, pretrained=True, pretrained_cfg=cfg, features_only=True, **asked, **THIN
    ).eval()
    assert features.feature_info.channels() == [192, 24, 24, 36, 48]
    levels = model.forward_intermediates(images(), intermediates_only=True)
    for ours, expected in zip(features(images()), levels, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("base", ["nothing", "ccnn_nin", "ccnn", "hf-hub:timm/resnet18", "../resnet18"])
def test_a_base_that_is_no_plain_network_of_timms_is_refused_by_name(base):
    with pytest.raises(ConfigurationError, match=f"'{base}' is neither a network of the zoo"):
        timm.create_model("ccnn", base=base)


def test_a_base_that_cannot_be_calibrated_is_refused_with_the_reason():
    with pytest.raises(CalibrationError, match=r"stem\.1 \(LayerNorm2d\)"):
        timm.create_model("ccnn", base="convnext_atto")


def test_arguments_that_the_base_does_not_know_are_refused_and_no_path_is_opened(tmp_path):
    with pytest.raises(TypeError, match="checkpoint_path"):
        timm.models.model_entrypoint("ccnn")(base="resnet18", checkpoint_path=str(tmp_path))
