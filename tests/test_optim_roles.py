"""CSGD knows w, R and the rest, whatever becomes of the parameters: through the layers, by groups, on several ranks."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from test_optim import assert_normalised, assert_same_bits, batch, calibrations, network, train
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ccnn_zoo import CSGD, CalibratedConv2d, calibrate, fold
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.optim import CALIBRATION, SHARED_WEIGHT, get_role


def roles_of(optimizer: CSGD) -> dict[str, list[Tensor]]:
    return {group["role"]: group["params"] for group in optimizer.param_groups}


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return [id(p) for p in some] == [id(p) for p in others]


@pytest.mark.parametrize("given", [lambda model: model, lambda model: model.parameters()])
def test_the_groups_are_w_and_r_and_the_rest(given):
    model = network()
    optimizer = CSGD(given(model), lr=0.1, weight_decay=1e-2)
    convs = [m for m in model if isinstance(m, CalibratedConv2d)]
    found = roles_of(optimizer)
    assert same(found["shared_weight"], [conv.weight for conv in convs])
    assert same(found["calibration"], [conv.calibration for conv in convs])
    known = {id(p) for conv in convs for p in (conv.weight, conv.calibration)}
    assert same(found["other"], [p for p in model.parameters() if id(p) not in known])
    by_role = {group["role"]: group for group in optimizer.param_groups}
    assert (by_role["calibration"]["momentum"], by_role["calibration"]["weight_decay"]) == (0, 0)
    assert by_role["shared_weight"]["weight_decay"] == by_role["other"]["weight_decay"] == 1e-2


def test_the_two_lines_of_the_readme_take_the_same_steps():
    models = [timm.create_model("ccnn_resnet20_cifar", branches=2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [CSGD(models[0], lr=0.1), create_optimizer_v2(models[1], opt="csgd", lr=0.1)]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 2)
    assert_same_bits(*models)
    optimizers[0].load_state_dict(deepcopy(optimizers[1].state_dict()))  # timm's one group, or ours
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 2)
    assert_same_bits(*models)


def test_a_model_without_calibrated_layers_is_refused():
    plain = timm.create_model("resnet10t")
    with pytest.raises(ConfigurationError, match=r"ResNet has no calibrated layer.*torch\.optim\.SGD"):
        CSGD(plain)
    with pytest.raises(ConfigurationError, match="folded network holds neither"):
        CSGD(fold(network()))
    CSGD(calibrate(plain, branches=1))


def test_an_assigned_parameter_has_the_role_of_the_one_before():
    conv = CalibratedConv2d(3, 4, 3, branches=2)
    conv.calibration = nn.Parameter(conv.calibration.detach().clone())
    conv.register_parameter("weight", nn.Parameter(conv.weight.detach().clone()))
    assert get_role(conv.calibration) == CALIBRATION
    assert get_role(conv.weight) == SHARED_WEIGHT
    conv.load_state_dict(CalibratedConv2d(3, 4, 3, branches=2).state_dict(), assign=True)
    assert (get_role(conv.weight), get_role(conv.calibration)) == (SHARED_WEIGHT, CALIBRATION)
    conv.bias = nn.Parameter(torch.zeros(4))
    assert get_role(conv.bias) is None


@pytest.mark.parametrize("given", [lambda model: model, lambda model: model.parameters()])
def test_parameters_that_were_replaced_before_the_optimizer_was_built_keep_their_roles(given):
    model = network()
    for conv in model:
        if isinstance(conv, CalibratedConv2d):
            conv.calibration = nn.Parameter(conv.calibration.detach().clone())
    train(model, CSGD(given(model), lr=0.1, weight_decay=0.1, calibration_lr=1.0), 3)
    assert_normalised(model)


def test_a_parameter_that_was_replaced_after_the_optimizer_was_built_is_named():
    model = network()
    optimizer = CSGD(model)
    train(model, optimizer, 1)
    model[3].calibration = nn.Parameter(model[3].calibration.detach().clone())
    before = deepcopy(model.state_dict())
    images, labels = batch(0)
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    with pytest.raises(ConfigurationError, match=r"does not know 3\.calibration.*CSGD\(model\) again"):
        optimizer.step()
    learnt = dict(model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in learnt.items())


def test_r_that_lost_its_mark_is_recognised_by_what_it_is():
    copies = [nn.Parameter(p.detach().clone()) for p in network().parameters()]
    with pytest.raises(ConfigurationError, match=r"\(3, 3, 3\) looks like a calibration kernel R.*Give CSGD the model"):
        CSGD(copies)
    with pytest.raises(ConfigurationError, match=r"\(3, 3, 3\) looks like a calibration kernel R"):
        CSGD([{"params": copies}])


def test_w_that_lost_its_mark_is_missed_where_there_is_r():
    params = [nn.Parameter(p.detach().clone()) if p.ndim == 4 else p for p in network().parameters()]
    with pytest.raises(ConfigurationError, match=r"no weight w that is marked.*\(4, 3, 3, 3\)"):
        CSGD(params)
    CSGD(calibrations(network()))  # R alone is no slip


def test_the_roles_of_groups_outlive_the_marks():
    model = network()
    optimizer = CSGD(model, lr=0.1, weight_decay=0.1, calibration_lr=1.0)
    for parameter in model.parameters():
        vars(parameter).pop("ccnn_role", None)
    train(model, optimizer, 3)
    assert_normalised(model)


def test_a_state_of_one_group_loads_by_the_order_of_the_parameters():
    models = [network(), network()]
    one = CSGD([{"params": models[0].parameters()}], lr=0.1, weight_decay=1e-2)
    train(models[0], one, 3)
    models[1].load_state_dict(models[0].state_dict())
    other = CSGD(models[1], lr=9.0)
    other.load_state_dict(deepcopy(one.state_dict()))  # torch takes the tensors themselves
    for model, optimizer in zip(models, (one, other), strict=True):
        train(model, optimizer, range(3, 6))
    assert_same_bits(*models)


def test_several_ranks_take_the_steps_of_one():
    """DDP and FSDP2 on two processes with half the batch each, over gloo, against one process without them."""
    child = Path(__file__).with_name("optim_ranks.py")
    run = subprocess.run([sys.executable, str(child)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == ["DDP", "FSDP2", "FSDP2-parameters"]
