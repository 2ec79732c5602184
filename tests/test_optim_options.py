"""CSGD's noise on gradients, its implementations, and what torch and timm do with an optimizer."""

from __future__ import annotations

import argparse
import math
from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from test_optim import Alone, assert_normalised, assert_same_bits, calibrations, network, train
from timm.optim import create_optimizer, create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ParseKwargs
from torch import Tensor, nn

from ccnn_zoo import CSGD, CalibratedConv2d
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.optim import CALIBRATION, get_role

SIGMA = 0.1


def still(parameters: list[Tensor]) -> list[Tensor]:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return parameters


def moved_by(optimizer: CSGD, parameter: Tensor, steps: int) -> Tensor:
    """What each of ``steps`` steps adds to a parameter, (steps, ...)."""
    seen = [parameter.detach().clone()]
    for _ in range(steps):
        optimizer.step()
        seen.append(parameter.detach().clone())
    return torch.stack(seen).diff(dim=0)


# Gradient noise of Neelakantan et al.


@pytest.mark.parametrize("decay", [0.0, 0.55])
def test_gradient_noise_has_the_variance_of_the_formula_in_every_step(decay: float) -> None:
    weight = nn.Parameter(torch.zeros(300, 200, dtype=torch.float64))
    options = {"lr": 0.5, "momentum": 0, "weight_decay": 0, "noise_std": SIGMA, "noise_decay": decay}
    optimizer = CSGD(still([weight]), noise="gradient", **options)
    added = moved_by(optimizer, weight, 6) / -0.5
    for t, noise in enumerate(added):
        variance = SIGMA**2 / (1 + t) ** decay
        standard_error = math.sqrt(2 / noise.numel())
        assert noise.var().item() == pytest.approx(variance, rel=5 * standard_error), t
        assert abs(noise.mean().item()) < 5 * math.sqrt(variance / noise.numel())
    correlation = np.corrcoef(added.flatten(1).numpy()) - np.eye(6)
    assert abs(correlation).max() < 5 / math.sqrt(weight.numel()), "every step draws anew"


def test_annealed_noise_on_w_fades_as_the_formula_says() -> None:
    layer = CalibratedConv2d(64, 64, 3, branches=2)
    still(list(layer.parameters()))
    optimizer = CSGD(layer, weight_decay=0, noise_std=SIGMA, noise_decay=0.55)
    for t, noise in enumerate(moved_by(optimizer, layer.weight, 4)):
        expected = SIGMA / (1 + t) ** 0.275
        assert noise.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * noise.numel())), t


def test_steps_with_gradient_noise_are_momentum_sgd_on_noisy_gradients() -> None:
    """Against a loop in numpy that knows the noise from an optimizer that adds nothing else."""
    shape, lr, momentum, decay, steps = (40, 5), 0.3, 0.8, 0.01, 5
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(steps, *shape, generator=generator, dtype=torch.float64)
    options = {"noise": "gradient", "noise_std": SIGMA, "noise_decay": 0.55, "seed": 8}
    silent = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    alone = CSGD(still([silent]), lr=1.0, momentum=0, weight_decay=0, **options)
    noise = -moved_by(alone, silent, steps).numpy()
    weight = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer = CSGD([weight], lr=lr, momentum=momentum, weight_decay=decay, **options)
    expected, velocity = np.ones(shape), np.zeros(shape)
    for t in range(steps):
        velocity = momentum * velocity + gradients[t].numpy() + noise[t] + decay * expected
        expected = expected - lr * velocity
        weight.grad = gradients[t].clone()
        optimizer.step()
        assert torch.equal(weight.grad, gradients[t]), "the caller's gradient is not touched"
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_gradient_noise_goes_to_all_parameters_but_r() -> None:
    model = network()
    before = deepcopy(model)
    still(list(model.parameters()))
    CSGD(model, lr=1.0, weight_decay=0, noise="gradient", noise_std=SIGMA).step()
    for p, old in zip(model.parameters(), before.parameters(), strict=True):
        assert (get_role(p) == CALIBRATION) == torch.allclose(p, old, atol=1e-5)


@pytest.mark.parametrize("noise", ["weight", "gradient"])
def test_annealing_continues_in_a_loaded_state_and_in_a_copy(noise: str, tmp_path: object) -> None:
    options = {"noise": noise, "noise_std": SIGMA, "noise_decay": 2.0}
    model = network()
    optimizer = CSGD(model, **options)
    train(model, optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    twin, twin_optimizer = deepcopy((model, optimizer))
    third = deepcopy(model)
    third_optimizer = CSGD(third)
    third_optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for one, its in ((model, optimizer), (twin, twin_optimizer), (third, third_optimizer)):
        train(one, its, 2)
    assert_same_bits(model, twin)
    assert_same_bits(model, third)


# The same noise


@pytest.mark.parametrize("noise", ["weight", "gradient"])
def test_the_noise_depends_neither_on_the_implementation_nor_on_how_groups_are_cut(noise: str) -> None:
    options = {"noise": noise, "noise_std": SIGMA, "weight_decay": 0, "seed": 6}
    results = []
    for parts in (1, 2, 5):
        for implementation in ({"foreach": False}, {"foreach": True}, {"fused": True}):
            model = network()
            params = still(list(model.parameters()))
            size = -(-len(params) // parts)
            groups = [{"params": params[start : start + size]} for start in range(0, len(params), size)]
            CSGD(groups, lr=1.0, **options, **implementation).step()
            results.append(model)
    for other in results[1:]:
        for a, b in zip(results[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert not torch.allclose(results[0][0].weight, network()[0].weight, atol=1e-2)


def test_the_noise_of_a_weight_held_channels_last_has_its_standard_deviation_too() -> None:
    layer = CalibratedConv2d(64, 64, 3, branches=2).to(memory_format=torch.channels_last)
    still(list(layer.parameters()))
    noise = moved_by(CSGD(layer, weight_decay=0, noise_std=SIGMA), layer.weight, 1)[0]
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert noise.std().item() == pytest.approx(SIGMA, rel=5 / math.sqrt(2 * noise.numel()))
    assert len(noise.unique()) > 0.99 * noise.numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_precision_get_the_same_noise(dtype: torch.dtype) -> None:
    moves = []
    for kind in (torch.float32, dtype):
        layer = CalibratedConv2d(8, 8, 3, branches=2).to(kind)
        nn.init.zeros_(layer.weight)
        still(list(layer.parameters()))
        moves.append(moved_by(CSGD(layer, weight_decay=0, noise_std=SIGMA), layer.weight, 1).float())
    torch.testing.assert_close(*moves, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


# Implementations


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_the_fused_step_is_the_plain_one_up_to_rounding(momentum: float) -> None:
    models = [network().double(), network().double()]
    options = {"lr": 0.1, "momentum": momentum, "calibration_lr": 1.0, "noise_std": 1e-2}
    for model, fused in zip(models, (False, True), strict=True):
        optimizer = CSGD(model, fused=fused, foreach=None if fused else False, **options)
        for step in range(5):
            train_double(model, optimizer, step)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def train_double(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    optimizer.zero_grad()
    F.cross_entropy(model(images), torch.arange(4)).backward()
    optimizer.step()


def test_the_fused_step_takes_parameters_that_get_their_first_gradient_later() -> None:
    late = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    for first, second, fused in ((late[0], late[1], True), (late[2], late[3], False)):
        optimizer = CSGD([first, second], fused=fused, foreach=None if fused else False)
        for step in range(3):
            first.grad = torch.full((3,), 0.5)
            second.grad = torch.full((3,), 0.25) if step else None
            optimizer.step()
    torch.testing.assert_close(late[0], late[2])
    torch.testing.assert_close(late[1], late[3])


@pytest.mark.parametrize("implementation", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_learning_rate_in_a_tensor_is_one_as_a_number(capturable: bool, implementation: dict[str, bool]) -> None:
    models = [network(), network()]
    for model, lr in zip(models, (0.1, torch.tensor(0.1)), strict=True):
        optimizer = CSGD(model, lr=lr, capturable=capturable, noise_decay=0.55, **implementation)
        for step, rate in enumerate((0.1, 0.03)):
            for group in optimizer.param_groups:
                group["lr"] = group["lr"].fill_(rate) if isinstance(lr, Tensor) else rate
            train(model, optimizer, range(step, step + 1))
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_replays_of_a_cuda_graph_are_the_steps_taken_one_by_one() -> None:
    models = [network().cuda(), network().cuda()]
    for model in models:
        still(list(model.parameters()))
    options = {"noise_std": SIGMA, "noise_decay": 0.55, "capturable": True}
    optimizers = [CSGD(model, lr=torch.tensor(0.1, device="cuda"), **options) for model in models]
    for _ in range(6):
        optimizers[0].step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizers[1].step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizers[1].register_with_graph(graph)
    with torch.cuda.graph(graph):
        optimizers[1].step()
    for _ in range(3):
        graph.replay()
    assert_same_bits(*models)


def test_a_compiled_step_is_the_plain_one() -> None:
    models = [network(), network()]
    optimizers = [CSGD(model, calibration_lr=1.0, noise_std=1e-2, foreach=True) for model in models]
    compiled = torch.compile(optimizers[1].step, backend="eager")
    for _ in range(3):
        for model in models:
            for p in model.parameters():
                p.grad = torch.ones_like(p).mul_(0.1)
        optimizers[0].step()
        compiled()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# What is refused


def test_a_sparse_gradient_is_refused_before_anything_moves() -> None:
    model = nn.ModuleList([Alone().give(weight=1.0), nn.Embedding(7, 3, sparse=True)])
    model[1](torch.tensor([1, 2])).sum().backward()
    before = deepcopy(model.state_dict())
    with pytest.raises(ConfigurationError, match=r"sparse gradients.*\(7, 3\) of group 2.*sparse=False"):
        CSGD(model, noise_std=SIGMA).step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "activation"}, "noise must be one of weight, gradient, got 'activation'"),
        ({"noise_decay": -1.0}, "noise_decay must be 0 or above, got -1.0"),
        ({"lr": torch.ones(2)}, "lr must be a number"),
        ({"momentum": torch.tensor(0.9)}, "momentum must be a number"),
        ({"fused": True, "foreach": True}, "exclude each other"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CSGD(network(), **options)


# What torch does with an optimizer


def test_maximising_the_negative_is_minimising() -> None:
    models = [network(), network()]
    for model, sign in zip(models, (1, -1), strict=True):
        optimizer = CSGD(model, maximize=sign < 0, noise="gradient", noise_std=0, calibration_lr=1.0)
        for _ in range(3):
            for i, p in enumerate(model.parameters()):
                p.grad = torch.full_like(p, sign * 0.05 * (i + 1))
            optimizer.step()
    assert_same_bits(*models)


def test_a_group_that_is_added_later_takes_part_with_options_of_its_own() -> None:
    model = network()
    optimizer = CSGD([{"params": model[0].parameters()}], noise_std=0, lr=0.1)
    train(model, optimizer, 2)
    before = deepcopy(model)
    optimizer.add_param_group({"params": model[3].parameters(), "noise_std": SIGMA, "noise": "gradient"})
    state = deepcopy(optimizer.state_dict())
    train(model, optimizer, 2)
    assert_normalised(model)
    assert not torch.equal(model[3].weight, before[3].weight)
    again = deepcopy(before)
    resumed = CSGD([{"params": again[0].parameters()}, {"params": again[3].parameters()}])
    resumed.load_state_dict(state)
    train(again, resumed, 2)
    assert_same_bits(model[3], again[3])
    with pytest.raises(ConfigurationError, match="noise must be one of"):
        optimizer.add_param_group({"params": model[4].parameters(), "noise": "both"})


def rates(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """The two learning rates, which all groups have."""
    (found,) = {(float(group["lr"]), group["calibration_lr"]) for group in optimizer.param_groups}
    return found


def test_torchs_schedulers_change_lr_and_leave_that_of_r() -> None:
    model = network()
    optimizer = CSGD(model, lr=0.1, calibration_lr=0.7)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], gamma=0.1)
    seen = []
    for step in range(3):
        train(model, optimizer, range(step, step + 1))
        seen.append(rates(optimizer))
        scheduler.step()
    assert seen == [(0.1, 0.7), (0.1, 0.7), (pytest.approx(0.01), 0.7)]
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(CSGD(model), max_lr=0.4, total_steps=10)  # cycles momentum too
    assert 0 < one_cycle.optimizer.param_groups[0]["lr"] < 0.4


def test_timms_schedulers_change_lr_and_leave_that_of_r() -> None:
    optimizer = CSGD(network(), lr=0.1, calibration_lr=0.7)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=10)
    scheduler.step(5)
    assert rates(optimizer) == (pytest.approx(0.05), 0.7)


def test_a_scaled_step_is_the_plain_one_and_an_overflow_changes_nothing() -> None:
    models = [network(), network()]
    optimizers = [CSGD(model, noise_std=1e-2, noise_decay=0.55, calibration_lr=1.0) for model in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        train(models[0], optimizers[0], range(step, step + 1))
        scaled_step(models[1], optimizers[1], scaler, step)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    before, state = deepcopy(models[1].state_dict()), optimizers[1].state_dict()
    models[1][0].weight.register_hook(lambda grad: grad * math.inf)
    scaled_step(models[1], optimizers[1], scaler, 3)
    assert scaler.get_scale() == 2.0**9
    learnt = dict(models[1].named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in learnt.items())
    after = optimizers[1].state_dict()["noise"]
    assert torch.equal(after["generators"]["cpu"], state["noise"]["generators"]["cpu"])
    assert after["steps"] == state["noise"]["steps"] == 3


def scaled_step(model: nn.Module, optimizer: CSGD, scaler: torch.amp.GradScaler, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(5, (4,), generator=generator)
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(images), labels)).backward()
    scaler.step(optimizer)
    scaler.update()


# timm's scripts


def script_arguments(*given: str) -> argparse.Namespace:
    """The optimizer's options as timm's train.py declares them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--opt", default="sgd")
    parser.add_argument("--opt-eps", default=None, type=float)
    parser.add_argument("--opt-betas", default=None, type=float, nargs="+")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=2e-5)
    parser.add_argument("--opt-kwargs", dest="opt_args", nargs="*", default={}, action=ParseKwargs)
    parser.add_argument("--opt-foreach", default=None, type=lambda text: text == "true")
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--layer-decay", type=float, default=None)
    return parser.parse_args(given)


def test_timms_script_options_build_it() -> None:
    model = timm.create_model("ccnn_resnet18_cifar", branches=2)
    chosen = ["noise_std=1e-3", "calibration_lr=0.2", "calibration_update=ascent", "noise=gradient", "noise_decay=0.55"]
    arguments = script_arguments("--opt", "csgd", "--lr", "0.3", "--opt-foreach", "true", "--opt-kwargs", *chosen)
    optimizer = create_optimizer(arguments, model)
    assert isinstance(optimizer, CSGD)
    expected = {"lr": 0.3, "momentum": 0.9, "noise_std": 1e-3, "calibration_lr": 0.2, "calibration_update": "ascent"}
    expected |= {"noise": "gradient", "noise_decay": 0.55, "foreach": True}
    for group in optimizer.param_groups:
        assert expected.items() <= group.items()
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 2e-5}
    generator = torch.Generator().manual_seed(0)
    F.cross_entropy(model(torch.randn(2, 3, 32, 32, generator=generator)), torch.tensor([0, 1])).backward()
    optimizer.step()
    for r in calibrations(model):
        torch.testing.assert_close(r.sum(0), torch.ones_like(r[0]), rtol=0, atol=1e-6)


def test_timms_factory_takes_every_option_by_name() -> None:
    options = {"noise": "gradient", "noise_decay": 0.55, "fused": True, "capturable": True, "maximize": True, "seed": 5}
    optimizer = create_optimizer_v2(network(), opt="csgd", lr=0.1, **options)
    assert optimizer.state_dict()["noise"]["seed"] == options.pop("seed")
    assert options.items() <= optimizer.param_groups[0].items()
