"""The branches' own classifiers: what the network returns is the logarithm of their mean probability."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from scipy.special import softmax
from test_zoo_oracles import SMALL, build, weights_of_branch
from torch import nn

import ccnn_zoo
from ccnn_zoo import export
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.layers import BranchConv2d, BranchLinear

ONE_LINEAR = [kind for kind in SMALL if not kind.startswith("alexnet")]


@pytest.mark.parametrize("kind", ONE_LINEAR)
@torch.no_grad()
def test_softmax_of_the_logits_is_the_mean_of_what_separate_networks_say(kind):
    model, images = build(kind, branches=3, merge="probability")
    plain, _ = build(kind, branches=1)
    alone = []
    for k in range(3):
        plain.load_state_dict(weights_of_branch(model, plain, k))
        alone.append(plain(images).double().numpy())
    np.testing.assert_allclose(model.forward_branches(images).numpy(), alone, rtol=1e-3, atol=1e-4)
    mean = softmax(alone, axis=-1).mean(0)
    np.testing.assert_allclose(softmax(model(images).double().numpy(), axis=-1), mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model(images).exp().numpy(), mean, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_one_branch_is_the_plain_network_to_the_bit():
    plain = timm.create_model("resnet18", num_classes=4).eval()
    model = timm.create_model("ccnn_resnet18", num_classes=4, branches=1, merge="probability").eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images), plain(images))


@torch.no_grad()
def test_calibrating_keeps_the_probabilities_and_folding_every_bit():
    plain = timm.create_model("resnet18", num_classes=4).eval()
    model = ccnn_zoo.calibrate(plain, 2, "probability").eval()
    images = torch.randn(2, 3, 64, 64)
    np.testing.assert_allclose(model(images).softmax(1), plain(images).softmax(1), atol=1e-5)
    assert torch.equal(ccnn_zoo.fold(model)(images), model(images))


def test_every_branch_gets_a_new_classifier():
    model = timm.create_model("ccnn_resnet20_cifar", layers=(1, 1, 1), branches=3, merge="probability")
    model.reset_classifier(7)
    assert model.fc.weight.shape == (21, 64)
    assert model.fc.out_features == model.num_classes == 7
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_file_gives_the_mean_probability_and_what_each_branch_says(tmp_path):
    model, images = build("small resnet", branches=3, merge="probability")
    path = tmp_path / "network.onnx"
    labels = [str(number) for number in range(5)]
    report = export.to_onnx(model, path, labels=labels, branch_outputs=True, size=(16, 16))
    assert report.nodes["LogSoftmax"] == 1
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits, alone = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(softmax(logits, axis=-1), softmax(alone, axis=-1).mean(0), atol=1e-6)
    np.testing.assert_allclose(logits, model(images).detach().numpy(), atol=1e-4)


def test_networks_whose_branches_meet_before_the_last_layer_are_refused():
    with pytest.raises(CalibrationError, match=r"one linear layer is its classifier.*'mean', 'max' or 'concat'"):
        timm.create_model("ccnn_alexnet", branches=2, merge="probability")


def test_an_untypical_head_is_refused_by_what_it_computes():
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, 5)

        def forward(self, x):
            return 2 * self.fc(self.conv(x).relu().mean((2, 3)))

    ccnn_zoo.calibrate(Doubling(), 2)
    with pytest.raises(CalibrationError, match="would not compute the function"):
        ccnn_zoo.calibrate(Doubling(), 2, "probability")


def test_convolutions_and_unknown_merges_are_refused():
    with pytest.raises(ConfigurationError, match=r"mean, max, concat, got 'probability'"):
        BranchConv2d(4, 5, 1, merge="probability")
    with pytest.raises(ConfigurationError, match=r"mean, max, concat, probability, got 'vote'"):
        BranchLinear(4, 5, merge="vote")


def test_the_classifier_can_be_scripted():
    layer = BranchLinear(4, 5, branches=3, merge="probability")
    features = torch.randn(2, 12)
    torch.testing.assert_close(torch.jit.script(layer)(features), layer(features))
