"""Factors of the channels that a branch reads: H_k = R_k * w * s_k, of which folding leaves nothing."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

import ccnn_zoo
from ccnn_zoo import CalibratedConv2d
from ccnn_zoo.branchwise import Branchwise
from ccnn_zoo.errors import ConfigurationError

LAYERS = {
    "grouped": {},
    "two groups": {"groups": 2},
    "depthwise": {"groups": 4, "out_channels": 8},
    "reads the image": {"shared_input": True},
    "dense": {"mixing": "dense"},
}

SHALLOW = {"layers": (1, 1, 1)}


def kernels_by_loops(conv: CalibratedConv2d) -> torch.Tensor:
    """Return H as its definition says: one kernel after another."""
    rows = []
    for k in range(conv.branches):
        for out in range(conv.out_channels):
            width = conv.weight.shape[1]
            groups = conv.groups if conv.mixing == "grouped" else 1
            first = out // (conv.out_channels // groups) * width
            scale = conv.input_scale[k, first : first + width]
            rows.append(torch.stack([conv.calibration[k] * conv.weight[out, i] * scale[i] for i in range(width)]))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("input_scale", ["signs", "learned"])
@torch.no_grad()
def test_effective_kernels_are_scaled_and_fold_to_the_bit(kind, input_scale):
    arguments = {"out_channels": 6, **LAYERS[kind]}
    torch.manual_seed(0)
    conv = CalibratedConv2d(4, kernel_size=3, branches=3, input_scale=input_scale, **arguments)
    assert set(conv.input_scale.unique().tolist()) == {-1.0, 1.0}
    conv.input_scale.normal_()
    torch.testing.assert_close(conv.effective_weight(), kernels_by_loops(conv), rtol=0, atol=1e-7)
    images = torch.randn(2, 4 if conv.shared_input else 12, 7, 7)
    assert torch.equal(conv.fuse()(images), conv(images))
    torch.testing.assert_close(
        conv(images), F.conv2d(images, kernels_by_loops(conv), groups=conv.total_groups), rtol=1e-4, atol=1e-5
    )


def test_only_what_is_learned_is_a_parameter_and_it_is_not_decayed():
    fixed = timm.create_model("ccnn_resnet20_cifar", **SHALLOW, branches=2, input_scale="signs")
    learned = timm.create_model("ccnn_resnet20_cifar", **SHALLOW, branches=2, input_scale="learned")
    assert not any(name.endswith("input_scale") for name, _ in fixed.named_parameters())
    assert "conv1.input_scale" in dict(fixed.named_buffers())
    assert "conv1.input_scale" in dict(learned.named_parameters())
    assert "conv1.input_scale" in learned.no_weight_decay()
    one = timm.create_model("ccnn_resnet20_cifar", **SHALLOW, branches=1, input_scale="learned")
    assert not any(name.endswith("input_scale") for name in one.state_dict())
    first = timm.create_model(
        "ccnn_resnet20_cifar", **SHALLOW, branches=2, input_scale="learned", scaled_layers="first"
    )
    assert [n for n, _ in first.named_parameters() if n.endswith("input_scale")] == ["conv1.input_scale"]


@torch.no_grad()
def test_branches_equal_separate_networks_and_the_network_folds_to_the_bit():
    model = timm.create_model("ccnn_resnet20_cifar", **SHALLOW, branches=2, input_scale="signs").eval()
    plain = timm.create_model("ccnn_resnet20_cifar", **SHALLOW, branches=1).eval()
    images = torch.randn(2, 3, 32, 32)
    state = model.state_dict()
    for k, said in enumerate(model.forward_branches(images)):
        weights = {}
        for key, like in plain.state_dict().items():
            if key.endswith("calibration"):
                weights[key] = like
                continue
            layer = key.rpartition(".")[0]
            if f"{layer}.input_scale" in state and key.endswith(".weight"):
                scale = state[f"{layer}.input_scale"][k][:, None, None]
                weights[key] = state[f"{layer}.calibration"][k] * state[key] * scale
            else:
                weights[key] = state[key] if state[key].shape == like.shape else state[key].chunk(2)[k]
        plain.load_state_dict(weights)
        torch.testing.assert_close(plain(images), said, rtol=1e-3, atol=1e-4)
    assert torch.equal(ccnn_zoo.fold(model)(images), model(images))


@torch.no_grad()
def test_calibrating_trained_weights_keeps_their_function():
    plain = timm.create_model("resnet18", num_classes=4).eval()
    model = ccnn_zoo.calibrate(plain, 2, input_scale="learned").eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images), plain(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigurationError, match="input_scale='signs' changes what trained weights compute"):
        ccnn_zoo.calibrate(plain, 2, input_scale="signs")


def test_a_few_branches_at_a_time_have_the_same_gradients():
    torch.manual_seed(0)
    model = timm.create_model("ccnn_resnet20_cifar", **SHALLOW, branches=3, input_scale="learned").double().train()
    images, targets = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4)
    gradients = []
    for run in (model, Branchwise(model, 2)):
        model.zero_grad()
        F.cross_entropy(run(images), targets).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_scale": "signal"}, "'none', 'signs', 'learned', got 'signal'"),
        ({"scaled_layers": "last"}, "'first', 'all', got 'last'"),
    ],
)
def test_unknown_scales_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        timm.create_model("ccnn_resnet20_cifar", **SHALLOW, branches=2, **options)
