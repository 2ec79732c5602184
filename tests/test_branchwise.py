"""A few branches at a time: the same function, gradients and statistics as all at once."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

import ccnn_zoo
from ccnn_zoo.branchwise import Branchwise
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.layers import BranchLinear


def network(branches: int, merge: str = "mean") -> nn.Module:
    torch.manual_seed(branches)
    shallow = {"layers": (1, 1, 1, 1), "in_chans": 1}
    model = timm.create_model("ccnn_resnet18_cifar", branches=branches, merge=merge, **shallow).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return model.train()


def images() -> torch.Tensor:
    return torch.randn(4, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("merge", ["mean", "max", "concat"])
@pytest.mark.parametrize(("branches", "at_once"), [(4, 1), (4, 2), (5, 2), (8, 4), (3, 8)])
def test_equals_all_branches_at_once(branches, at_once, merge):
    whole = network(branches, merge)
    model = deepcopy(whole)
    weighting = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(4, 10)
    for _ in range(2):
        expected, found = whole(images()), Branchwise(model, at_once)(images())
        torch.testing.assert_close(found, expected)
        (expected * weighting).sum().backward()
        (found * weighting).sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), theirs in zip(model.named_buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_layers_that_sort_channels_know_how_many_branches_a_pass_has():
    torch.manual_seed(0)
    whole = timm.create_model("ccnn_resnet20_cifar", layers=(1, 1, 1), branches=4).double().train()
    pictures = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(Branchwise(deepcopy(whole), 2)(pictures), whole(pictures))


def test_the_network_is_left_as_it_was():
    model = network(8)
    wrapped = Branchwise(model, 2)
    wrapped(images())
    with pytest.raises(RuntimeError):
        wrapped(torch.randn(1, 7, 12, 12, dtype=torch.float64))
    assert {m.branches for m in model.modules() if isinstance(m, ccnn_zoo.CalibratedConv2d)} == {8}
    assert {m.total_groups for m in model.modules() if isinstance(m, ccnn_zoo.CalibratedConv2d)} == {1, 8}
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.eval()(images()).shape == (4, 10)
    assert {name.removeprefix("model.") for name in wrapped.state_dict()} == set(model.state_dict())


def test_networks_whose_branches_are_not_known_to_be_independent_are_refused():
    with pytest.raises(CalibrationError, match="0 BranchLinear"):
        Branchwise(timm.create_model("resnet18"))
    odd = nn.Sequential(nn.PReLU(4), BranchLinear(1, 2, branches=4))
    with pytest.raises(CalibrationError, match=r"0 \(PReLU\)"):
        Branchwise(odd)
    with pytest.raises(ConfigurationError, match=r"at_once .*0"):
        Branchwise(network(2), 0)


def test_checkpointed_layers_are_refused():
    model = timm.create_model("ccnn_resnet18_cifar", layers=(1, 1, 1, 1), branches=4).train()
    model.set_grad_checkpointing()
    with pytest.raises(CalibrationError, match=r"set_grad_checkpointing\(False\)"):
        Branchwise(model, at_once=2)(torch.randn(2, 3, 32, 32))
    Branchwise(model, at_once=2).eval()(torch.randn(2, 3, 32, 32))
