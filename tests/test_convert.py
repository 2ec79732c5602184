"""Calibrating and folding whole networks, against plain ones."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
from separate_networks import load_branch, randomize
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.utils import reparameterize_model
from torch import Tensor, nn

from ccnn_zoo import CalibratedConv2d, calibrate, fold
from ccnn_zoo.errors import CalibrationError, ConfigurationError

BRANCHES = (1, 2, 4, 8)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def small_resnet(block: type[nn.Module] = BasicBlock, **kwargs: object) -> ResNet:
    return ResNet(block, (1, 1, 1, 1), channels=(8, 8, 12, 16), num_classes=5, **kwargs)


def images(size: int = 32, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=dtype)


def calibrated_convs(model: nn.Module) -> list[CalibratedConv2d]:
    return [m for m in model.modules() if isinstance(m, CalibratedConv2d)]


# branches=1


@pytest.fixture(scope="module")
def plain_resnet18() -> ResNet:
    return randomize(timm.create_model("resnet18", num_classes=10))


@pytest.mark.parametrize("how", ["calibrate", "create_model"])
@pytest.mark.parametrize("training", [False, True])
def test_one_branch_is_the_plain_timm_network_to_the_bit(plain_resnet18: ResNet, training: bool, how: str) -> None:
    plain = deepcopy(plain_resnet18).train(training)
    if how == "calibrate":
        ours = calibrate(plain, branches=1)
    else:
        ours = timm.create_model("ccnn_resnet18", branches=1, num_classes=10).train(training)
        missing, unexpected = ours.load_state_dict(plain.state_dict(), strict=False)
        assert not unexpected
        assert all(name.endswith(".calibration") for name in missing)
    x = images(64)
    outputs = [model(x) for model in (plain, ours)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(*outputs)
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    assert {n for n in gradients if not n.endswith(".calibration")} == dict(plain.named_parameters()).keys()
    for name, parameter in plain.named_parameters():
        assert torch.equal(gradients[name], parameter.grad), name
    for name, buffer in plain.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer), name


def test_the_calibration_is_the_only_new_key_and_shared_weights_keep_their_shapes() -> None:
    plain = small_resnet()
    state = calibrate(plain, branches=3).state_dict()
    expected = {f"{name}.calibration" for name, m in plain.named_modules() if isinstance(m, nn.Conv2d)}
    assert set(state) - set(plain.state_dict()) == expected
    for name, module in plain.named_modules():
        if isinstance(module, nn.Conv2d):
            assert state[f"{name}.weight"].shape == module.weight.shape


# K separate networks


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_branches_equal_separate_plain_networks(block: type[nn.Module]) -> None:
    plain = small_resnet(block).double().eval()
    model = randomize(calibrate(plain, branches=3, diversity=1.0))
    x = images(dtype=torch.float64)
    logits = torch.stack([load_branch(plain, model, k)(x) for k in range(3)])
    assert logits.std(0).min() > 1e-6, "the branches must differ for this to say anything"
    torch.testing.assert_close(model(x), logits.mean(0), rtol=1e-9, atol=1e-9)


def test_gradients_of_the_network_follow_from_those_of_separate_networks_by_the_chain_rule() -> None:
    plain = small_resnet().double().train()
    model = randomize(calibrate(plain, branches=3, diversity=1.0))
    x, cotangent = images(dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    separate = [load_branch(deepcopy(plain), model, k) for k in range(3)]
    model(x).backward(cotangent)
    for network in separate:
        network(x).backward(cotangent / 3)
    for name, conv in model.named_modules():
        if not isinstance(conv, CalibratedConv2d):
            continue
        grads = [network.get_submodule(name).weight.grad for network in separate]
        expected_w = sum(r * g for r, g in zip(conv.calibration, grads, strict=True))
        expected_r = torch.stack([(conv.weight * g).sum((0, 1)) for g in grads])
        torch.testing.assert_close(conv.weight.grad, expected_w, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(conv.calibration.grad, expected_r, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(model.fc.weight.grad, sum(network.fc.weight.grad for network in separate))
    norms = torch.cat([network.layer3[0].bn1.weight.grad for network in separate])
    torch.testing.assert_close(model.layer3[0].bn1.weight.grad, norms, rtol=1e-7, atol=1e-9)


def test_gradients_of_the_network_agree_with_finite_differences() -> None:
    plain = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sigmoid(), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 2)
    )
    model = randomize(calibrate(plain, branches=3, diversity=1.0, input_size=(1, 5, 5)).double()).eval()
    parameters = dict(model.named_parameters())
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)

    def output(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, tuple(parameters.values()))


# Folding


@pytest.mark.parametrize("fold_with", [fold, reparameterize_model])
@pytest.mark.parametrize("branches", BRANCHES)
def test_folding_changes_no_bit(branches: int, fold_with: object) -> None:
    model = randomize(calibrate(small_resnet(), branches, diversity=1.0)).eval()
    before = deepcopy(model.state_dict())
    folded = fold_with(model)
    x = images()
    assert not calibrated_convs(folded)
    assert not [name for name in folded.state_dict() if "calibration" in name]
    assert torch.equal(folded(x), model(x))
    assert [m.groups for m in folded.modules() if isinstance(m, nn.Conv2d)][:3] == [1, branches, branches]
    assert calibrated_convs(model), "the model that was folded stays calibrated"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("options", [{"groups": 2, "padding": "same"}, {"stride": 2, "bias": True, "dilation": 2}])
def test_folding_a_lone_layer_changes_no_bit(options: dict[str, object]) -> None:
    conv = CalibratedConv2d(4, 8, 3, branches=4, **options)
    folded = fold(conv)
    x = images()[:, :1].repeat(1, 16, 1, 1)
    assert type(folded) is nn.Conv2d
    assert torch.equal(folded(x), conv(x))
    assert type(conv) is CalibratedConv2d


def test_folding_keeps_the_mode_and_module_sharing() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = calibrate(nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU(), conv), branches=2, diversity=1.0).eval()
    folded = fold(model)
    assert folded[1] is folded[3]
    assert not folded[1].training
    assert torch.equal(folded(images()), model(images()))


def test_a_folded_network_loads_into_the_folded_form_of_the_zoo() -> None:
    model = randomize(timm.create_model("ccnn_resnet18_cifar")).eval()
    plain = timm.create_model("ccnn_resnet18_cifar", folded=True).eval()
    plain.load_state_dict(fold(model).state_dict())
    assert torch.equal(plain(images()), model(images()))


# Calibrating


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("branches", BRANCHES)
def test_the_effective_kernels_start_as_the_given_ones(branches: int, rescale: bool) -> None:
    plain = small_resnet()
    model = calibrate(plain, branches, rescale=rescale)
    scale = 1 if rescale else 1 / branches
    for name, conv in model.named_modules():
        if isinstance(conv, CalibratedConv2d):
            expected = scale * plain.get_submodule(name).weight.repeat(branches, 1, 1, 1)
            torch.testing.assert_close(conv.effective_weight(), expected)


@pytest.mark.parametrize("merge", ["mean", "max", "concat"])
@pytest.mark.parametrize("branches", BRANCHES)
def test_a_calibrated_network_starts_as_the_function_of_the_plain_one(branches: int, merge: str) -> None:
    plain = randomize(small_resnet()).eval()
    torch.testing.assert_close(calibrate(plain, branches, merge)(images()), plain(images()), rtol=1e-5, atol=1e-5)


def test_calibrating_leaves_the_given_network_untouched() -> None:
    plain = small_resnet()
    before = deepcopy(plain.state_dict())
    randomize(calibrate(plain, branches=2))
    assert not calibrated_convs(plain)
    assert plain.num_features == 16
    assert plain.feature_info[1]["num_chs"] == 8
    for name, value in plain.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_networks_without_batch_norm_are_always_rescaled() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 28 * 28, 2))
    for rescale in (True, False):
        model = calibrate(plain, branches=4, rescale=rescale)
        torch.testing.assert_close(model(images()), plain(images()), rtol=1e-5, atol=1e-5)


def test_kernels_shared_between_layers_stay_shared_and_are_scaled_once() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), nn.ReLU(), nn.Conv2d(3, 3, 3, bias=False))
    plain[2].weight = plain[0].weight
    model = calibrate(plain, branches=2)
    assert model[0].weight is model[2].weight
    torch.testing.assert_close(model(images()), plain(images()).repeat(1, 2, 1, 1))


def test_what_is_frozen_stays_frozen() -> None:
    plain = small_resnet()
    plain.layer1.requires_grad_(False)
    model = calibrate(plain, branches=2)
    assert not model.layer1[0].conv1.weight.requires_grad
    assert not model.layer1[0].bn1.weight.requires_grad
    assert model.layer2[0].conv1.weight.requires_grad


def test_mode_dtype_and_device_are_kept() -> None:
    plain = small_resnet().to(torch.bfloat16).eval()
    model = calibrate(plain, branches=2)
    assert not any(m.training for m in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in calibrate(small_resnet(device="meta"), branches=2).parameters()} == {"meta"}


def test_declared_widths_are_those_of_all_branches() -> None:
    model = calibrate(small_resnet(), branches=2)
    assert model.num_features == model.forward_features(images()).shape[1] == 32
    assert [info["num_chs"] for info in model.feature_info] == [128, 16, 16, 24, 32]


@pytest.mark.parametrize("branches", [0, -3, 2.0, True])
def test_branches_below_one_are_refused_by_value(branches: object) -> None:
    with pytest.raises(ConfigurationError, match=f"at least 1.*got {branches!r}"):
        calibrate(small_resnet(), branches=branches)


def test_an_unknown_merge_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="mean, max, concat, probability, got 'median'"):
        calibrate(small_resnet(), branches=2, merge="median")


def test_a_calibrated_network_is_not_calibrated_twice() -> None:
    with pytest.raises(CalibrationError, match="conv1 is calibrated already"):
        calibrate(calibrate(small_resnet(), branches=2), branches=2)


def test_a_network_without_convolutions_is_refused() -> None:
    with pytest.raises(CalibrationError, match="Sequential has no"):
        calibrate(nn.Sequential(nn.Linear(3, 2)), branches=2)


def test_padding_that_would_mix_borders_is_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match="1 has padding_mode='reflect'"):
        calibrate(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding_mode="reflect")), branches=2)


def test_a_linear_layer_before_a_convolution_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(8, 8), nn.Conv2d(4, 4, 1))
    with pytest.raises(CalibrationError, match=r"1 \(Linear\) comes before 2"):
        calibrate(model, branches=2)
